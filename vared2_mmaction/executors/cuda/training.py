# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Mix options with gradients on a GPU, as an operator that compiled graphs know."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ...layout import empty_clips, from_memory_order, in_memory_order, layout
from ...ops.cheap import ChannelOptions, TemporalOptions
from ...ops.mixing import Shares
from ...ops.options import Options
from . import mixing as kernels

_TILE = 1024
"""Elements of a computed frame that a program reads forward."""
_TILE_BACK = 512
_CLIPS, _CHANNELS = 8, 64
"""What a program that makes gradients of factors reads at a time."""


def mix_by_kernels(
    z: Tensor,
    share: Shares,
    options: Options,
    channel_options: ChannelOptions,
    temporal_options: TemporalOptions,
    frames: int,
) -> Tensor:
    """Mix options by kernels; see :func:`vared2_mmaction.ops.mixing.mix`. ``z`` is of a type of
    :data:`~vared2_mmaction.executors.cuda.TYPES`."""
    rows = channel_options.rows(options.channel), temporal_options.rows(options.temporal)
    tables = torch.cat([*rows[0], *rows[1]]).float()
    kept = [channel_options.kept[i] for i in options.channel]
    given = (None if v is None else v.float().contiguous() for v in share)
    return mixed_maps(z, *given, tables, kept, list(options.temporal), frames)


@torch.library.custom_op('vared2_mmaction::mix', mutates_args=())
def mixed_maps(
    z: Tensor,
    p: Tensor | None,
    q: Tensor | None,
    tables: Tensor,
    kept: list[int],
    temporal: list[int],
    frames: int,
) -> Tensor:
    """Mix.

    Args:
        z: What the dearest options compute, (N, k, t, H, W).
        p: Shares of channel options, (N, options) in float32, contiguous; None of one option.
        q: Shares of temporal options.
        tables: Scales of channel options, (options, C) in float32, then their shifts, then both of
            temporal options, (options, period, C).
        kept: Channels that each channel option computes.
        temporal: The temporal options.
        frames: Output frames T.

    Returns:
        (N, C, T, H, W), which lies as z.
    """
    z = _dense(z, layout(z))
    of = _Sizes(z, tables, kept, temporal, frames)
    y = of.empty()
    if y.numel():
        tile = of.tile(of.channels, _TILE)
        with torch.cuda.device_of(z):
            kernels.forward[of.grid(of.channels, tile)](
                z, y, *_shares(p, q, z), tables, *of.numbers, **of.of_maps,
                WHOLE=kept[0] == of.channels, **tile,
            )  # fmt: skip
    return y


@mixed_maps.register_fake
def _(z: Any, p: Any, q: Any, tables: Any, kept: Any, temporal: Any, frames: Any) -> Tensor:
    return _Sizes(z, tables, kept, temporal, frames).empty()


@torch.library.custom_op('vared2_mmaction::mix_backward', mutates_args=())
def mixed_maps_backward(
    gradient: Tensor,
    z: Tensor,
    p: Tensor | None,
    q: Tensor | None,
    tables: Tensor,
    kept: list[int],
    temporal: list[int],
    frames: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of z, p, q and the tables from that of what :func:`mixed_maps` returned; those of
    shares that were not given have no elements."""
    lies = layout(z)
    z, gradient = _dense(z, lies), _dense(gradient, lies)
    of_z, of_tables = torch.empty_like(z), torch.empty_like(tables)
    if not z.numel():
        of_p, of_q = (tables.new_zeros(0 if v is None else v.shape) for v in (p, q))
        return of_z, of_p, of_q, of_tables.zero_()
    of = _Sizes(z, tables, kept, temporal, frames)
    tile = of.tile(kept[0], _TILE_BACK)
    grid = of.grid(kept[0], tile)
    parts = grid[0] // triton.cdiv(kept[0], tile['CHANNELS']) * grid[1]
    sums = tables.new_empty(len(z), parts, of.rows, of.channels)
    own, over = of.own, of.over
    tasks, tiles = own + over * of.period, triton.cdiv(of.channels, _CHANNELS)
    of_shares = tables.new_empty(tiles, len(z), tasks)
    shares = _shares(p, q, z)
    with torch.cuda.device_of(z):
        kernels.backward_maps[grid](
            gradient, z, of_z, sums, *shares, tables, *of.numbers, **of.of_maps,
            READS=of.reads, **tile,
        )  # fmt: skip
        kernels.backward_factors[tiles, tasks](
            sums.sum(1), of_tables, of_shares, *shares, tables, *of.kept, of.channels, len(z),
            **of.constants, OPTIONS=of.options, CLIPS=_CLIPS, CHANNELS=_CHANNELS,
        )  # fmt: skip
    of_both = of_shares.sum(0)
    # What is absent is made for each: outputs of an operator share no memory.
    of_p = tables.new_empty(0) if p is None else of_both[:, :own].contiguous()
    of_q = tables.new_empty(0) if q is None else of_both[:, own:].unflatten(1, (over, -1)).sum(2)
    return of_z, of_p, of_q, of_tables


@mixed_maps_backward.register_fake
def _(gradient: Any, z: Any, p: Any, q: Any, tables: Any, *_: Any) -> tuple[Tensor, ...]:
    of_shares = (tables.new_empty(0 if v is None else v.shape) for v in (p, q))
    return torch.empty_like(z), *of_shares, torch.empty_like(tables)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.of = inputs[4:]


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    z, p, q, tables = ctx.saved_tensors
    of_z, of_p, of_q, of_tables = mixed_maps_backward(gradient, z, p, q, tables, *ctx.of)
    of_shares = (None if v is None else of for v, of in ((p, of_p), (q, of_q)))
    return of_z, *of_shares, of_tables, None, None, None


mixed_maps.register_autograd(_gradients, setup_context=_keep)


class _Sizes:
    """What kernels are told of sizes."""

    def __init__(
        self, z: Tensor, tables: Tensor, kept: Sequence[int], temporal: Sequence[int], frames: int
    ) -> None:
        self.z, self.frames, lies = z, frames, layout(z)
        own, over, period = len(kept), len(temporal), 2 ** temporal[-1]
        self.channels = tables.numel() // (2 * (own + over * period))
        computed, area = z.shape[2], z.shape[3] * z.shape[4]
        strides = (
            _strides(lies, c, t, area) for c, t in ((kept[0], computed), (self.channels, frames))
        )
        self.last = lies == 'channels last'
        # Vectors of channels that can be read at once, if channels lie side by side.
        vector = math.gcd(8, self.channels, *kept) if self.last else 1
        self.kept = (*kept, *(1,) * (4 - own))
        self.numbers = (
            *(k // vector for k in kept), *(1,) * (4 - own), *(n for s in strides for n in s),
            self.channels // vector, frames, computed, area,
        )  # fmt: skip
        per_period = 2 ** (temporal[-1] - temporal[0])
        self.own, self.over, self.period, self.per_period = own, over, period, per_period
        self.rows = own + period * (per_period + 1)
        self.constants = {'OWN': own, 'OVER': over, 'FRAMES': per_period, 'PERIOD': period}
        # Which computed frame of a period each temporal option makes each frame of.
        sources = [(t >> j << j) >> temporal[0] for j in temporal for t in range(period)]
        self.of_maps = {
            **self.constants, 'SOURCES': sum(f << 4 * n for n, f in enumerate(sources)),
            'LAST': self.last, 'VECTOR': vector,
        }  # fmt: skip
        self.reads = sum(
            1 << t * per_period + f for t, f in {(n % period, f) for n, f in enumerate(sources)}
        )
        self.options = sum(j << 2 * b for b, j in enumerate(temporal))

    def empty(self) -> Tensor:
        """What is written."""
        return empty_clips((len(self.z), self.channels, self.frames, *self.z.shape[3:]), self.z)

    def tile(self, channels: int, elements: int) -> dict[str, int]:
        """Channels and positions of a tile: as many of those that lie side by side as can be."""
        elements //= max(self.per_period // 4, 1)
        positions, channels = (
            triton.next_power_of_2(n) for n in (self.z.shape[3] * self.z.shape[4], channels)
        )
        if self.last:
            # Backward, sums over many positions are worth more than many channels side by side.
            channels = min(channels, 64 if elements > 512 else 16)
            return {'CHANNELS': channels, 'AREA': min(positions, elements // channels)}
        positions = min(positions, elements)
        return {'CHANNELS': min(channels, elements // positions), 'AREA': positions}

    def grid(self, channels: int, tile: dict[str, int]) -> tuple[int, int, int]:
        """Programs: tiles of channels and positions, periods, clips."""
        across = triton.cdiv(channels, tile['CHANNELS'])
        tiles = across * triton.cdiv(self.numbers[-1], tile['AREA'])
        return tiles, triton.cdiv(self.frames, self.period), len(self.z)


def _strides(lies: str, channels: int, frames: int, area: int) -> tuple[int, int, int, int]:
    """Those of clips, frames and channels in units, and the unit; see the kernels' ``_place``."""
    if lies == 'channels last':
        return frames * area, area, 0, channels
    of_frame, of_channel = (channels, 1) if lies == 'frames' else (1, frames)
    return channels * frames, of_frame, of_channel, area


def _dense(maps: Tensor, lies: str) -> Tensor:
    return from_memory_order(in_memory_order(maps, lies).contiguous(), lies)


def _shares(p: Tensor | None, q: Tensor | None, absent: Tensor) -> tuple[Tensor, ...]:
    return tuple(absent if v is None else v for v in (p, q))
