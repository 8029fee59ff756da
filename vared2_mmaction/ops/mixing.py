# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Mix what the options of a layer make of one convolution."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
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
(2, options, T, C); None of a dimension whose maps are all computed."""


def shares(weights: Modulation) -> Shares:
    """Shares of options: the gate's weights, of which at least one of each dimension is above 0,
    over their sum."""
    channel, temporal = weights
    if channel.shape == temporal.shape and channel.shape[1] > 1:
        both = torch.stack(weights)  # half as many operations
        return Shares(*(both / both.sum(2, keepdim=True)).unbind())
    return Shares(*(None if v.shape[1] == 1 else v / v.sum(1, keepdim=True) for v in weights))


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
    axes = AXES[lies]
    maps = _all_channels(z.permute(axes), options.channel, channel_options.kept, axes.index(1))
    y = _sum(maps, share.channel, tables[0], lies)
    maps = _all_frames(y, options.temporal, frames, axes.index(2))
    y = _sum(maps, share.temporal, tables[1], lies)
    if 1 in y.shape:  # a view gives dimensions of size one any strides; see layout.settled
        y = y.view(y.shape)
    return y.permute(BACK[lies])


def tables_of(
    options: Options,
    channel_options: ChannelOptions,
    temporal_options: TemporalOptions,
    frames: int,
) -> Tables:
    """What cheap operations multiply maps with, and add; see :func:`mix`."""
    channel = temporal = None
    if options.channel != (0,):
        channel = channel_options.tables(options.channel)
    if options.temporal != (0,):
        temporal = temporal_options.tables(options.temporal)
        if (period := temporal.shape[2]) < frames:
            temporal = temporal.repeat(1, 1, -(-frames // period), 1)[:, :, :frames]
    return channel, temporal


def _all_channels(z: Tensor, options: Sequence[int], kept: Sequence[int], at: int) -> list[Tensor]:
    """Copies of what each channel option computes, as all channels; these lie along axis ``at``.

    ``z`` is what the dearest of them computes.
    """
    maps = []
    for option in options:
        copies = z.narrow(at, 0, kept[option])
        if option:
            copies = _repeat(copies, at, -(-kept[0] // kept[option]), False)
            copies = copies.narrow(at, 0, kept[0])
        maps.append(copies)
    return maps


def _all_frames(y: Tensor, options: Sequence[int], frames: int, at: int) -> list[Tensor]:
    """Copies of what each temporal option computes, as all frames; these lie along axis ``at``.

    ``y`` are the frames that the dearest of them computes.
    """
    maps = []
    for option in options:
        every = slice(None, None, 2 ** (option - options[0]))
        copies = y[:, every] if at == 1 else y[:, :, every]
        if option:
            copies = _repeat(copies, at, 2**option, True)
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
    if tables is None:
        return maps[0]
    tables = tables.transpose(2, 3)[:, :, None, ..., None, None].permute(_TABLES[lies])
    if share is not None:
        tables = share.t()[..., None, None, None, None] * tables
    factors, shifts = tables.unbind(0)
    # Shifts are as few as factors are: added up first, they are added to the maps once.
    y = shifts.sum(0).to(maps[0].dtype)
    for option, factor in zip(maps, factors.to(y.dtype).unbind(0), strict=True):
        y = torch.addcmul(y, option, factor)
    return y
