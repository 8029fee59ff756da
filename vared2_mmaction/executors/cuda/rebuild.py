# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""One pass that makes all maps from those computed: rebuilds, mixes, adds a residual, applies ReLU.

Each clip has its own policy. A program works on one frame of one clip, so that options of which the
clip has no share are left out by a branch, and read nothing.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...ops.options import Options
from .maps import vector

_TILE = 4096
"""Elements that a program writes."""
_COLUMNS = 128
"""Channels that it writes, at most."""
_SIZES = str.split(
    'frames area channels width z_frames z_width tables_width clip_shares period first_temporal '
    'k0 k1 k2 k3 j0 j1 j2 j3'
)


class Tables(NamedTuple):
    """What pairs of options in use rebuild maps with."""

    options: Options
    kept: tuple[int, ...]
    """Channels that each of the channel options computes."""
    factors: Tensor
    """(channel options, temporal options, 2, period, C'): scale and shift, in float32, with the
    convolution's bias; zeros behind the C channels."""
    single: bool
    """Whether one option of each dimension is in use, whose share is one."""


def make_tables(
    tables: tuple[tuple[Tensor, ...], ...],
    kept: tuple[int, ...],
    bias: Tensor | None,
    options: Options,
    width: int,
) -> Tables:
    """Tables of some options.

    Args:
        tables: Scale and shift of every pair of options; see
            :class:`~vared2_mmaction.executors.base.Choice`.
        kept: Channels that each channel option computes.
        bias: Bias of the convolution, which adds none itself.
        options: The options.
        width: C', channels and the zeros behind them.
    """
    period, channels = 2 ** options.temporal[-1], kept[0]
    rows = []
    for i in options.channel:
        source = torch.arange(channels, device=tables[0][0].device) % kept[i]
        for j in options.temporal:
            scale, shift = tables[i][j].double().repeat(1, period // 2**j, 1)
            if bias is not None:
                shift = shift + scale * bias.double()[source]
            rows.append(torch.stack((scale, shift)))
    number = len(options.channel), len(options.temporal)
    factors = torch.stack(rows).unflatten(0, number).float()
    factors = torch.nn.functional.pad(factors, (0, width - channels)).contiguous()
    return Tables(options, tuple(kept[i] for i in options.channel), factors, number == (1, 1))


@triton.jit
def _read(z, frame, area, row, width, source, mask, READ: tl.constexpr):
    """A tile of a computed frame, in float32; its width is given in vectors."""
    maps = z + frame.to(tl.int64) * area * (width * READ)
    at = (row * width)[:, None] * READ + source[None, :]
    return tl.load(maps + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=_SIZES)
def _rebuild(
    z, y, residual, factors, shares,
    frames, area, channels, width, z_frames, z_width, tables_width, clip_shares, period,
    first_temporal, k0, k1, k2, k3, j0, j1, j2, j3,
    CHANNEL: tl.constexpr, TEMPORAL: tl.constexpr, SINGLE: tl.constexpr, WHOLE: tl.constexpr,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, READ: tl.constexpr, WRITE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write a tile of a frame.

    Widths are given in vectors, READ or WRITE elements each, so that it is known what they are
    multiples of.
    """
    tile = tl.program_id(0)
    across = tl.cdiv(width * WRITE, COLUMNS)
    down = tl.cdiv(area, ROWS)
    column = (tile % across) * COLUMNS + tl.arange(0, COLUMNS)
    row = (tile // across) % down * ROWS + tl.arange(0, ROWS)
    frame = tile // across // down
    clip, t = frame // frames, frame % frames
    start = clip * z_frames
    there = column < width * WRITE
    mask = (row < area)[:, None] & there[None, :]
    offset, wide = t % period, tables_width * WRITE
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    constant = tl.zeros((COLUMNS,), tl.float32)
    for i in tl.static_range(CHANNEL):
        k = (k0, k1, k2, k3)[i]
        source = column
        if i > 0 or not WHOLE:
            # Vectors of channels stay together, as each k is a number of them.
            source = tl.max_contiguous(tl.multiple_of(column % k, READ), READ)
        share_c = 1.0
        if not SINGLE:
            share_c = tl.load(shares + clip * clip_shares + i)
        if share_c != 0:  # and not, if it is NaN
            # Options that read the same frame read it once.
            factor = tl.zeros((COLUMNS,), tl.float32)
            held = 0
            from_frame = 0
            for n in tl.static_range(TEMPORAL):
                j = (j0, j1, j2, j3)[n]
                share = share_c
                if not SINGLE:
                    share = share_c * tl.load(shares + clip * clip_shares + CHANNEL + n)
                if share != 0:
                    reads = (t >> j) << (j - first_temporal)
                    if (held != 0) & (reads != from_frame):
                        maps = _read(z, start + from_frame, area, row, z_width, source, mask, READ)
                        total += factor[None, :] * maps
                        factor = tl.zeros((COLUMNS,), tl.float32)
                    from_frame = reads
                    held = 1
                    scale = factors + ((i * TEMPORAL + n) * 2 * period + offset) * wide + column
                    factor += share * tl.load(scale, mask=there, other=0.0)
                    constant += share * tl.load(scale + period * wide, mask=there, other=0.0)
            if held != 0:
                maps = _read(z, start + from_frame, area, row, z_width, source, mask, READ)
                total += factor[None, :] * maps
    total += constant[None, :]
    first = frame.to(tl.int64) * area * (width * WRITE)
    at = (row * width)[:, None] * WRITE + column[None, :]
    if RESIDUAL:
        total += tl.load(residual + first + at, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        total = tl.where(total < 0, 0.0, total)  # NaN stays
    total = tl.where((column < channels)[None, :], total, 0.0)
    tl.store(y + first + at, total.to(y.dtype.element_ty), mask=mask)


def rebuild(
    z: Tensor,
    tables: Tables,
    shares: Tensor | None,
    channels: int,
    frames: int,
    y: Tensor,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    """Make all maps from those that are computed.

    Args:
        z: What the dearest of the options compute, (N, ceil(T / R), H, W, k or more), contiguous.
        tables: Tables of the options.
        shares: Shares of the channel and of the temporal options, (N, both) in float32; None for a
            single pair.
        channels: Output channels C.
        frames: Output frames T.
        y: Written; (N, T, H, W, C'), contiguous, zeros behind the C channels. It may be z, if that
            has all channels and frames.
        residual: Added; as y.
        relu: Whether ReLU is applied.

    Returns:
        y.
    """
    width, z_width, area = y.shape[-1], z.shape[-1], y.shape[2] * y.shape[3]
    if not y.numel():
        return y
    options, kept = tables.options, tables.kept
    whole = kept[0] == channels and z_width >= width
    wrapped = kept[1:] if whole else kept
    read = math.gcd(vector(z.dtype), z_width, *wrapped)
    write = math.gcd(vector(y.dtype), width)
    columns = min(_COLUMNS, max(16, triton.next_power_of_2(width)))
    rows = min(_TILE // columns, triton.next_power_of_2(area))
    tiles = triton.cdiv(width, columns) * triton.cdiv(area, rows) * len(y) * frames
    with torch.cuda.device_of(y):
        _rebuild[(tiles,)](
            z, y, y if residual is None else residual, tables.factors,
            tables.factors if shares is None else shares,
            frames, area, channels, width // write, z.shape[1], z_width // read,
            tables.factors.shape[-1] // write, 0 if shares is None else shares.stride(0),
            tables.factors.shape[3], options.temporal[0],
            *_four(kept), *_four(options.temporal),
            len(options.channel), len(options.temporal), tables.single, whole,
            residual is not None, relu, read, write, rows, columns, num_warps=4,
        )  # fmt: skip
    return y


def _four(numbers: tuple[int, ...]) -> tuple[int, ...]:
    return (*numbers, *(1,) * (4 - len(numbers)))
