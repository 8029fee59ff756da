# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Mix what the options of a layer make of one convolution."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layout import AXES, BACK, layout
from .cheap import ChannelOptions, TemporalOptions
from .gate import Modulation
from .options import Options

_TABLES = {lies: (0, 1, *(2 + axis for axis in axes)) for lies, axes in AXES.items()}
"""The order of memory for tables (2, options, N, C, T, H, W)."""


class Shares(NamedTuple):
    """What options are mixed with."""

    channel: Tensor | None
    """(N, channel options), or None: one option has all."""
    temporal: Tensor | None
    """(N, temporal options), or None."""


Tables = tuple[Tensor | None, Tensor | None]
"""Scales and shifts of channel options, (2, options, 1, C), and of temporal ones,
(2, options, T, C); None of a dimension where maps are taken as they are."""


def shares(weights: Modulation, normalised: bool) -> Shares:
    """Shares of options.

    Args:
        weights: The gate's, of at least one option of each dimension above 0.
        normalised: Whether they are divided by their sum, so that a single option has all;
            otherwise they are the shares.
    """
    channel, temporal = weights
    if not normalised:
        return Shares(channel, temporal)
    if channel.shape == temporal.shape and channel.shape[1] > 1:
        both = torch.stack(weights)  # half as many operations
        return Shares(*(both / both.sum(2, keepdim=True)).unbind())
    return Shares(
        None if channel.shape[1] == 1 else channel / channel.sum(1, keepdim=True),
        None if temporal.shape[1] == 1 else temporal / temporal.sum(1, keepdim=True),
    )


def mix(
    z: Tensor,
    share: Shares,
    options: Options,
    channel_options: ChannelOptions,
    temporal_options: TemporalOptions,
    frames: int,
    tables: Tables | None = None,
) -> Tensor:
    """Mix options: first channels, then frames.

    ``y = sum_j share_j temporal_option_j(sum_i share_i channel_option_i(z))``. Factors are combined
    before any map is touched.

    Args:
        z: What the dearest of the options compute, (N, k, ceil(T / R), H, W).
        share: Shares of the options.
        options: Which they are.
        channel_options: Make channels.
        temporal_options: Make frames.
        frames: Output frames T.
        tables: What :func:`tables_of` says of the options, if it is known.

    Returns:
        All maps, (N, C, T, H, W).
    """
    if tables is None:
        tables = tables_of(options, channel_options, temporal_options, frames)
    # All in the order in which maps lie in memory: the order of a sum's axes is then no matter of
    # taste, in which compiled graphs and kernels might differ.
    lies = layout(z)
    maps = _all_channels(z.permute(AXES[lies]), options.channel, channel_options, lies)
    y = _sum(maps, share.channel, tables[0], lies)
    maps = _all_frames(y, options.temporal, temporal_options, frames, lies)
    y = _sum(maps, share.temporal, tables[1], lies)
    if 1 in y.shape:  # a view gives dimensions of size one any strides; see layout.settled
        y = y.view(y.shape)
    return y.permute(BACK[lies])


def needs_factors_alone(
    share: Shares,
    options: Options,
    channel_options: ChannelOptions,
    temporal_options: TemporalOptions,
) -> bool:
    """Whether there is anything to mix, and factors of copies are all that it takes: compiled code
    mixes nothing else."""
    if options == ((0,), (0,)) and share.channel is None and share.temporal is None:
        return False
    return channel_options.affine and temporal_options.affine


def tables_of(
    options: Options,
    channel_options: ChannelOptions,
    temporal_options: TemporalOptions,
    frames: int,
) -> Tables:
    """What affine cheap operations multiply maps with, and add; see :func:`mix`."""
    channel = temporal = None
    if channel_options.affine and options.channel != (0,):
        channel = channel_options.tables(options.channel)
    if temporal_options.affine and options.temporal != (0,):
        temporal = temporal_options.tables(options.temporal)
        if (period := temporal.shape[2]) < frames:
            temporal = temporal.repeat(1, 1, -(-frames // period), 1)[:, :, :frames]
    return channel, temporal


def _all_channels(
    z: Tensor, options: tuple[int, ...], channel_options: ChannelOptions, lies: str
) -> list[Tensor]:
    """Maps of channel options, all channels, before affine operations; in the order of memory.

    ``z`` is what the dearest of them computes.
    """
    at, channels, maps = AXES[lies].index(1), channel_options.channels, []
    for option in options:
        k = channel_options.kept[option]
        computed = copies = z.narrow(at, 0, k)
        if option:
            copies = _repeat(computed, at, -(-channels // k), False).narrow(at, 0, channels)
        if option and not channel_options.affine:
            read = copies.narrow(at, k, channels - k).permute(BACK[lies])
            rebuilt = channel_options.operation(option)(read, slice(None))
            copies = torch.cat((computed, rebuilt.permute(AXES[lies])), at)
        maps.append(copies)
    return maps


def _all_frames(
    y: Tensor,
    options: tuple[int, ...],
    temporal_options: TemporalOptions,
    frames: int,
    lies: str,
) -> list[Tensor]:
    """Maps of temporal options, all frames, before affine operations; in the order of memory.

    ``y`` are the frames that the dearest of them computes.
    """
    at, maps = AXES[lies].index(2), []
    for option in options:
        every, stride = slice(None, None, 2 ** (option - options[0])), 2**option
        copies = y[:, every] if at == 1 else y[:, :, every]
        if option and temporal_options.affine:
            copies = _repeat(copies, at, stride, True)
        elif option:
            sources, offsets = copies.permute(BACK[lies]), [copies]
            operation, channels = temporal_options.operation(option), temporal_options.channels
            for offset in range(1, stride):
                read = sources[:, :, : -(-(frames - offset) // stride)]
                rebuilt = operation(read, slice((offset - 1) * channels, offset * channels))
                # Zeros, which nobody reads, behind the end of the clip.
                rebuilt = F.pad(rebuilt, (0, 0, 0, 0, 0, sources.shape[2] - read.shape[2]))
                offsets.append(rebuilt.permute(AXES[lies]))
            copies = torch.stack(offsets, at + 1).flatten(at, at + 1)
        maps.append(copies.narrow(at, 0, frames))
    return maps


def _repeat(x: Tensor, at: int, times: int, each: bool) -> Tensor:
    """Repeat what lies along an axis: each index side by side, or all after all."""
    sizes = [-1] * (x.dim() + 1)
    sizes[at + each] = times
    return x.unsqueeze(at + each).expand(sizes).flatten(at, at + 1)


def _sum(maps: list[Tensor], share: Tensor | None, tables: Tensor | None, lies: str) -> Tensor:
    """The sum of options' maps, in the order of memory, by their shares, (N, options), and tables,
    (2, options, frames, C)."""
    if share is None and tables is None:
        return maps[0]
    dtype, y = maps[0].dtype, None
    factors = share.t()[..., None, None, None, None] if share is not None else None
    if tables is not None:
        tables = tables.transpose(2, 3)[:, :, None, ..., None, None].permute(_TABLES[lies])
        factors, shifts = (tables if factors is None else factors * tables).unbind(0)
        # Shifts are as few as factors are: added up first, they are added to the maps once.
        y = shifts.sum(0).to(dtype)
    assert factors is not None
    for option, factor in zip(maps, factors.to(dtype).unbind(0), strict=True):
        y = option * factor if y is None else torch.addcmul(y, option, factor)
    assert y is not None
    return y
