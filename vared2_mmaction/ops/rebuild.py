# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Write computed maps and their affine copies into one output, each element once.

In both dimensions the output repeats what is computed: frame i R + r is made from computed frame
i, channel c from computed channel c mod k. Broadcasting writes all copies in one operation; what
is left over where R or k do not divide takes one more.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .forms import empty_clips


def rebuild(z: Tensor, scale: Tensor, shift: Tensor, frames: int) -> Tensor:
    """``y[:, c, i R + r] = scale[r, c] * z[:, c mod k, i] + shift[r, c]``.

    Args:
        z: Computed maps, (N, k, ceil(frames / R), H, W).
        scale: (R, C). What copies nothing, frame offset 0 of the first k channels, gets no
            gradient: its factor is a constant.
        shift: (R, C).
        frames: Number of frames T of the output.

    Returns:
        All maps, (N, C, T, H, W), in the layout of z.
    """
    if torch.is_grad_enabled():
        return _Rebuild.apply(z, scale, shift, frames)
    return _write(z, scale, shift, frames)


def _write(z: Tensor, scale: Tensor, shift: Tensor, frames: int) -> Tensor:
    channels = scale.shape[1]
    out = empty_clips((z.shape[0], channels, frames, *z.shape[3:]), z)
    for block in _blocks(z.shape, channels, frames, len(scale)):
        source, factors = block.source(z), block.factors(scale)
        torch.addcmul(block.factors(shift), source, factors, out=block.target(out))
    return out


class _Block(NamedTuple):
    """Channels and frames that are whole numbers of copies of the computed ones."""

    clips: int
    copies: int
    """Of computed channels."""
    width: int
    """Computed channels that are copied, the first ones."""
    sources: int
    """Computed frames that are copied."""
    offsets: int
    """Frames made from each, itself included."""
    area: tuple[int, ...]
    """Rows and columns."""
    first_channel: int
    first_frame: int
    first_source: int

    # Views are made in one step each: small maps take less time than a chain of views.

    def source(self, z: Tensor) -> Tensor:
        """(N, 1, width, sources, 1, H, W)."""
        clips, channels, frames, rows, columns = z.stride()
        return z.as_strided(
            (self.clips, 1, self.width, self.sources, 1, *self.area),
            (clips, 0, channels, frames, 0, rows, columns),
            z.storage_offset() + self.first_source * frames,
        )

    def target(self, y: Tensor) -> Tensor:
        """(N, copies, width, sources, offsets, H, W)."""
        clips, channels, frames, rows, columns = y.stride()
        return y.as_strided(
            (self.clips, self.copies, self.width, self.sources, self.offsets, *self.area),
            (clips, self.width * channels, channels, self.offsets * frames, frames, rows, columns),
            y.storage_offset() + self.first_channel * channels + self.first_frame * frames,
        )

    def factors(self, table: Tensor) -> Tensor:
        """(copies, width, 1, offsets, 1, 1)."""
        offsets, channels = table.stride()
        return table.as_strided(
            (self.copies, self.width, 1, self.offsets, 1, 1),
            (self.width * channels, channels, 0, offsets, 0, 0),
            table.storage_offset() + self.first_channel * channels,
        )


@functools.lru_cache(maxsize=4096)
def _blocks(size: tuple[int, ...], channels: int, frames: int, stride: int) -> tuple[_Block, ...]:
    """What takes one operation each.

    Args:
        size: Of the computed maps.
        channels: Of the output.
        frames: Of the output.
        stride: Frames that are made from each computed one.
    """
    clips, computed, _, *area = size
    return tuple(
        _Block(clips, copies, width, sources, offsets, tuple(area), channel, start, start // stride)
        for channel, copies, width in _copies(channels, computed)
        for start, sources, offsets in _copies(frames, stride)  # each followed by its copies
    )


def _copies(length: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Cut a length into as many pieces of a size as fit, and the rest: start, number, size."""
    if whole := length // size:
        yield 0, whole, size
    if rest := length % size:
        yield whole * size, 1, rest


class _Rebuild(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, scale: Tensor, shift: Tensor, frames: int) -> Tensor:
        ctx.save_for_backward(z, scale)
        return _write(z, scale, shift, frames)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        z, scale = ctx.saved_tensors
        need_z, need_tables = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3])
        grad_z = torch.zeros_like(z) if need_z else None
        grad_scale, grad_shift = torch.zeros_like(scale), torch.zeros_like(scale)
        for block in _blocks(z.shape, grad.shape[1], grad.shape[2], len(scale)):
            given, factors = block.target(grad), block.factors(scale)
            tables = [block.factors(table) for table in (grad_scale, grad_shift)]
            source = block.source(z)[:, 0, :, :, 0]
            into = None if grad_z is None else block.source(grad_z)[:, 0, :, :, 0]
            for q in range(block.copies):
                for r in range(block.offsets):
                    part = given[:, q, :, :, r]
                    if into is not None:
                        into.addcmul_(part, factors[q, :, :, r])
                    if need_tables and (q, r, block.first_channel) != (0, 0, 0):
                        tables[0][q, :, 0, r, 0, 0] += (part * source).sum((0, 2, 3, 4))
                        tables[1][q, :, 0, r, 0, 0] += part.sum((0, 2, 3, 4))
        return grad_z, grad_scale, grad_shift, None
