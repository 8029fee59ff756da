# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Blend channels and frames at once, with gradients, by Triton kernels on a GPU.

The GPU's :mod:`~vared2_mmaction.ops.compiled_blend`: one launch forward, which reads what was
computed and the shares and cheap operations as they lie, and three back, of which one reads maps.
What that one sums over positions it adds up in an order that only sizes decide, so that gradients
are the same in every run. Sums are in float32, whatever the type of the maps.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..cheap import ChannelOptions, TemporalOptions
from ..options import MAX_OPTIONS
from ..parts import parts_like
from . import trained_kernels as kernels
from .launch import INTERPRETED, TYPES
from .trained_kernels import CHANNELS_FIRST, CHANNELS_LAST, FRAMES_FIRST

_AXES = {
    CHANNELS_LAST: (0, 2, 3, 4, 1),
    CHANNELS_FIRST: (0, 1, 2, 3, 4),
    FRAMES_FIRST: (0, 2, 1, 3, 4),
}
_ALIGNED = 16
"""Elements whose multiples begin where Triton knows that a vector can be written."""
_PROGRAMS = 1024
"""Programs that share the maps backward: enough to fill a GPU, and each has sums of its own."""


def serves(computed: Tensor) -> bool:
    """Whether there are kernels for what a layer computed, (N, C, T, H, W)."""
    if not (computed.is_cuda or INTERPRETED) or computed.dtype not in TYPES:
        return False
    return _layout(computed) is not None and not torch.compiler.is_compiling()


def blend(
    computed: Tensor,
    options: tuple[ChannelOptions, TemporalOptions],
    shares: Sequence[Tensor | None],
    active: Sequence[Sequence[int]],
    frames: int,
) -> Tensor:
    """Blend the active options of both dimensions.

    Args:
        computed: What the dearest of them compute, (N, k, t, H, W); see :func:`serves`.
        options: Channel and temporal options, with affine cheap operations.
        shares: Shares of all options of each dimension, (N, options), each row summing to one, or
            None where one option is active.
        active: Options of each dimension that are blended, rising.
        frames: Output frames T.

    Returns:
        Output, (N, C, T, H, W), which lies as what was computed.

    Raises:
        ValueError: If what was computed is not what the dearest options compute.
    """
    channel = options[0]
    layout = _layout(computed)
    expected = channel.kept[active[0][0]], -(-frames // 2 ** active[1][0])
    if layout is None or computed.shape[1:3] != expected:
        raise ValueError(
            f'expected dense clips with {expected[0]} channels and {expected[1]} frames, got '
            f'{tuple(computed.shape)} with strides {computed.stride()}'
        )
    of = _Blended(
        layout,
        tuple(channel.kept[i] for i in active[0]),
        (_packed(active[0]), _packed(active[1])),
        (len(active[0]), len(active[1])),
        channel.channels,
        frames,
        2 ** (active[1][-1] - active[1][0]),
    )
    factors = (*_factors(channel, active[0]), *_factors(options[1], active[1]))
    rows = (None if p is None else p.contiguous() for p in shares)
    return _Blend.apply(computed, *rows, of, *factors)


def _factors(
    options: ChannelOptions | TemporalOptions, active: Sequence[int]
) -> Iterator[Tensor | None]:
    """Weights of as many options as a dimension can have, and then their biases."""
    cheap: list[Any] = list(options.cheap)
    yield from _four([cheap[i - 1].weight if i else options.ones for i in active])
    yield from _four([cheap[i - 1].bias if i else options.zeros for i in active])


class _Blended(NamedTuple):
    """What is blended."""

    layout: int
    kept: tuple[int, ...]
    """Channels that each active option computes."""
    packed: tuple[int, int]
    """Active options of each dimension, a whole number each."""
    active: tuple[int, int]
    """Numbers of them."""
    channels: int
    frames: int
    computed_frames: int
    """Computed frames of a period."""

    @property
    def period(self) -> int:
        """Output frames of a period."""
        return self.computed_frames << self.packed[1] % 4

    @property
    def rows(self) -> int:
        """Rows of sums over positions; see :func:`_launch_maps`."""
        return (self.active[0] * self.computed_frames + 1) * self.period

    @property
    def tasks(self) -> int:
        """Active channel options and offsets of active temporal ones."""
        steps = (2 ** (self.packed[1] >> 2 * b & 3) for b in range(self.active[1]))
        return self.active[0] + sum(steps)

    def tile(self, channels: int, area: int, elements: int, line: int) -> dict[str, int]:
        """Channels and positions of a tile, of which ``line`` lie side by side if there are."""
        channels, area = _power_from(channels), _power_from(area)
        if self.layout == CHANNELS_LAST:
            channels = min(channels, line)
            area = min(area, elements // channels)
        else:
            area = min(area, max(line, elements // channels))
            channels = min(channels, elements // area)
        return {'CHANNELS': channels, 'AREA': area}


class _Launch(NamedTuple):
    """How a kernel is launched."""

    grid: tuple[int, ...]
    constants: dict[str, int]


# Triton's own are made for kernels, where they may be constants, and take a while on the host.
def _pieces(length: int, size: int) -> int:
    return -(-length // size)


def _power_from(number: int) -> int:
    """Smallest power of two that is no less than a number."""
    return 1 << max(number - 1, 0).bit_length()


@functools.lru_cache(maxsize=4096)
def _forward_launch(of: _Blended, clips: int, area: int) -> _Launch:
    elements = min(4096, 8192 // of.computed_frames)
    tile = of.tile(of.channels, area, elements, 64 if of.layout == CHANNELS_LAST else 128)
    tiles = _pieces(of.channels, tile['CHANNELS']) * _pieces(area, tile['AREA'])
    return _Launch((tiles, _pieces(of.frames, of.period), clips), _constants(of) | tile)


@functools.lru_cache(maxsize=4096)
def _maps_launch(of: _Blended, clips: int, area: int, size: int, programs: int) -> _Launch:
    """That of maps of a type with so many bytes."""
    # Bytes side by side that a memory transaction reads; what a thread holds fits its registers.
    line = 128 if of.layout != CHANNELS_LAST else 128 // size
    tile = of.tile(of.kept[0], area, min(512, 1024 // of.computed_frames), line)
    tiles = _pieces(of.kept[0], tile['CHANNELS'])
    items = _pieces(area, tile['AREA']) * _pieces(of.frames, of.period)
    parts = min(items, _pieces(programs, max(tiles * clips, 1)))
    return _Launch((tiles, parts, clips), _constants(of) | tile)


def _constants(of: _Blended) -> dict[str, int]:
    own, over = of.active
    return {'OWN': own, 'OVER': over, 'FRAMES': of.computed_frames, 'LAYOUT': of.layout}


def _packed(active: Sequence[int]) -> int:
    return sum(option << 2 * a for a, option in enumerate(active))


def _layout(maps: Tensor) -> int | None:
    """How clips lie, if they are dense."""
    if maps.dim() != 5:
        return None
    last = maps.is_contiguous(memory_format=torch.channels_last_3d)
    if last and maps.stride(1) == 1:  # of one channel both are
        return CHANNELS_LAST
    if maps.is_contiguous():
        return CHANNELS_FIRST
    if maps.transpose(1, 2).is_contiguous():
        return FRAMES_FIRST
    return CHANNELS_LAST if last else None


def _laid(maps: Tensor, layout: int) -> Tensor:
    """Maps as they should lie, copied if they do not."""
    if layout == CHANNELS_LAST:
        return maps.contiguous(memory_format=torch.channels_last_3d)
    if layout == CHANNELS_FIRST:
        return maps.contiguous()
    return maps.transpose(1, 2).contiguous().transpose(1, 2)


def _empty(like: Tensor, channels: int, frames: int, layout: int) -> Tensor:
    """Maps for as many clips, with other channels and frames."""
    shape = (len(like), channels, frames, *like.shape[3:])
    # No view of other memory: what follows may write over the output of an autograd function.
    return torch.empty_permuted(shape, _AXES[layout], dtype=like.dtype, device=like.device)


def _four(values: Sequence[Any], absent: Any = None) -> list[Any]:
    """Arguments for as many options as a dimension can have."""
    return [*values, *[absent] * (MAX_OPTIONS - len(values))]


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        computed: Tensor,
        p: Tensor | None,
        q: Tensor | None,
        of: _Blended,
        *factors: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(computed, p, q, *factors)
        ctx.of = of
        with torch.cuda.device_of(computed):
            return _launch_forward(computed, p, q, of, factors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        computed, p, q, *factors = ctx.saved_tensors
        of = ctx.of
        wanted = ctx.needs_input_grad[4:]
        made = parts_like(
            [f for f, want in zip(factors, wanted, strict=True) if want], torch.empty, _ALIGNED
        )
        own = [next(made) if want else None for want in wanted]
        with torch.cuda.device_of(computed):
            gradient = _laid(gradient, of.layout)
            of_computed, sums = _launch_maps(gradient, computed, p, q, of, factors)
            of_shares = _launch_factors(sums, p, q, of, factors, own)
        return of_computed, *of_shares, None, *own


def _launch_forward(
    computed: Tensor,
    p: Tensor | None,
    q: Tensor | None,
    of: _Blended,
    factors: Sequence[Tensor | None],
) -> Tensor:
    y = _empty(computed, of.channels, of.frames, of.layout)
    area = math.prod(computed.shape[3:])
    grid, constants = _forward_launch(of, len(computed), area)
    kernels.forward[grid](
        computed, y, p, q, *factors, *_four(of.kept, 0), *of.packed, *_columns(p, q), of.channels,
        of.frames, area, **constants, num_warps=4,
    )  # fmt: skip
    return y


def _launch_maps(
    gradient: Tensor,
    computed: Tensor,
    p: Tensor | None,
    q: Tensor | None,
    of: _Blended,
    factors: Sequence[Tensor | None],
) -> tuple[Tensor, Tensor]:
    """Gradient of what was computed, and sums over positions, (N, parts, rows, C).

    Rows are those of :func:`_pair_row`, of which what is not read is not written, and then sums of
    the gradient, of each output frame of a period.
    """
    n, channels, frames = computed.shape[:3]
    area = math.prod(computed.shape[3:])
    of_computed = _empty(computed, channels, frames, of.layout)
    grid, constants = _maps_launch(of, n, area, computed.element_size(), _PROGRAMS)
    sums = computed.new_empty(n, grid[1], of.rows, of.channels, dtype=torch.float32)
    # Of one warp, which sums over positions without waiting for others.
    kernels.backward_maps[grid](
        gradient, computed, of_computed, sums, p, q, *factors[:MAX_OPTIONS],
        *factors[2 * MAX_OPTIONS : 3 * MAX_OPTIONS], *_four(of.kept, 0), *of.packed,
        *_columns(p, q), of.channels, of.frames, area, **constants, num_warps=1,
    )  # fmt: skip
    return of_computed, sums


def _launch_factors(
    sums: Tensor,
    p: Tensor | None,
    q: Tensor | None,
    of: _Blended,
    factors: Sequence[Tensor | None],
    wanted: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of the shares; those of factors are written where they are wanted."""
    # All that is not wanted is written to one place, instead of by kernels of another kind.
    pairs = list(zip(factors, wanted, strict=True))
    sizes = [f.numel() for f, into in pairs if f is not None and into is None]
    nowhere = sums.new_empty(max(sizes, default=0))
    into = [nowhere if f is not None and to is None else to for f, to in pairs]
    n, parts, _, channels = sums.shape
    tasks, block = of.tasks, 32
    tiles = _pieces(channels, block)
    partial = sums.new_empty(n, tasks, tiles)
    found = [None if share is None else torch.empty_like(share) for share in (p, q)]
    active = {'OWN': of.active[0], 'OVER': of.active[1]}
    kernels.backward_factors[tiles, tasks](
        sums, partial, p, q, *factors, *into, *_four(of.kept, 0), *of.packed, *_columns(p, q),
        channels, n, parts, **active, FRAMES=of.computed_frames, CLIPS=min(8, _power_from(n)),
        CHANNELS=block, num_warps=2,
    )  # fmt: skip
    if any(share is not None for share in found):
        kernels.backward_shares[(n,)](
            partial, *found, *of.packed, *_columns(p, q), tiles, tasks, **active, BLOCK=64,
            num_warps=1,
        )  # fmt: skip
    return found


def _columns(*shares: Tensor | None) -> list[int]:
    return [0 if share is None else share.shape[1] for share in shares]
