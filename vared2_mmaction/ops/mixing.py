# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Mix what the options of a layer make of one convolution."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..layout import from_memory_order, in_memory_order, layout, settled
from .cheap import ChannelOptions, TemporalOptions
from .gate import Modulation
from .options import Options


class Shares(NamedTuple):
    """What options are mixed with."""

    channel: Tensor | None
    """(N, channel options), or None: one option has all."""
    temporal: Tensor | None
    """(N, temporal options), or None."""


def shares(weights: Modulation, normalised: bool) -> Shares:
    """Shares of options.

    Args:
        weights: The gate's, of at least one option of each dimension above 0.
        normalised: Whether they are divided by their sum, so that a single option has all;
            otherwise they are the shares.
    """
    if not normalised:
        return Shares(*weights)
    if weights.channel.shape == weights.temporal.shape and weights.channel.shape[1] > 1:
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

    Returns:
        All maps, (N, C, T, H, W).
    """
    channel, temporal = channel_options, temporal_options
    maps = [channel.maps(z, i) for i in options.channel]
    y = _sum(maps, share.channel, _tables(channel, options.channel))
    maps = [temporal.maps(y, options.temporal[0], j, frames) for j in options.temporal]
    tables = _tables(temporal, options.temporal, frames)
    return _sum(maps, share.temporal, tables)


def needs_factors_alone(
    share: Shares,
    options: Options,
    channel_options: ChannelOptions,
    temporal_options: TemporalOptions,
) -> bool:
    """Whether there is anything to mix, and factors of copies are all that it takes: compiled code
    mixes nothing else."""
    trivial = options == ((0,), (0,)) and all(v is None for v in share)
    return channel_options.affine and temporal_options.affine and not trivial


def _tables(
    dimension: ChannelOptions | TemporalOptions, options: tuple[int, ...], frames: int = 1
) -> tuple[Tensor, Tensor] | None:
    """Scales and shifts of options, (options, frames, C) each; None where there are none."""
    if not dimension.affine or options == (0,):
        return None
    tables = zip(*map(dimension.table, options), strict=True)
    scale, shift = (
        torch.stack([_over_frames(table, frames) for table in parts]) for parts in tables
    )
    return scale, shift


def _over_frames(table: Tensor, frames: int) -> Tensor:
    """A table for each frame offset, (R, C), for each frame."""
    if len(table) == frames:
        return table
    repeated = table.repeat(-(-frames // len(table)), 1)
    return repeated if len(repeated) == frames else repeated[:frames]


def _sum(maps: list[Tensor], share: Tensor | None, tables: tuple[Tensor, Tensor] | None) -> Tensor:
    """The sum of options' maps, (N, C, T, H, W) each, by their shares, (N, options), and tables."""
    if share is None and tables is None:
        return maps[0]
    # All in the order in which maps lie in memory: the order of a sum's axes is then no matter of
    # taste, in which compiled graphs and kernels might differ.
    dtype, lies = maps[0].dtype, layout(maps[0])
    factor, y = None if share is None else share[..., None, None], None
    if tables is not None:
        scale, shift = tables if factor is None else (factor * table for table in tables)
        # Shifts are as few as factors are: added up first, they are added to the maps once.
        factor, y = scale, _lying(shift.sum(-3).to(dtype), lies)
    assert factor is not None
    for option, each in zip(maps, factor.to(dtype).unbind(-3), strict=True):
        option, each = in_memory_order(option, lies), _lying(each, lies)
        y = option * each if y is None else torch.addcmul(y, option, each)
    assert y is not None
    return settled(from_memory_order(y, lies), lies)


def _lying(factors: Tensor, lies: str) -> Tensor:
    """Factors, (N, frames, C) or (frames, C), to multiply maps with in the order of memory."""
    clips = factors if factors.dim() == 3 else factors[None]
    return in_memory_order(clips.transpose(1, 2)[..., None, None], lies).contiguous()
