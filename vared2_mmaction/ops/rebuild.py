# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Write computed maps and their affine copies into one output, each element once.

In both dimensions the output repeats what is computed: frame i R + r is made from computed frame
i, channel c from computed channel c mod k. Broadcasting writes all copies in one operation; what
is left over where R or k do not divide takes one more.
"""

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
    shape = (z.shape[0], scale.shape[1], frames, *z.shape[3:])
    out = empty_clips(shape, z)
    for block in _blocks(z, out, len(scale)):
        source, factors = block.source(z)[:, None, :, :, None], block.factors(scale)
        torch.addcmul(block.factors(shift), source, factors, out=block.target(out))
    return out


class _Block(NamedTuple):
    """Channels and frames that are whole numbers of copies of the computed ones."""

    width: int
    """Computed channels that are copied, the first ones."""
    channels: slice
    copies: int
    sources: slice
    """Computed frames."""
    frames: slice
    offsets: int

    # Views are made in one step each: small maps take less time than a chain of views.

    def source(self, z: Tensor) -> Tensor:
        """(N, width, sources, H, W)."""
        return z[:, : self.width, self.sources]

    def target(self, y: Tensor) -> Tensor:
        """(N, copies, width, sources, offsets, H, W)."""
        clips, channels, frames, rows, columns = y.stride()
        sources = self.sources.stop - self.sources.start
        return y.as_strided(
            (len(y), self.copies, self.width, sources, self.offsets, *y.shape[3:]),
            (clips, self.width * channels, channels, self.offsets * frames, frames, rows, columns),
            y.storage_offset() + self.channels.start * channels + self.frames.start * frames,
        )

    def factors(self, table: Tensor) -> Tensor:
        """(copies, width, 1, offsets, 1, 1)."""
        offsets, channels = table.stride()
        return table.as_strided(
            (self.copies, self.width, 1, self.offsets, 1, 1),
            (self.width * channels, channels, 0, offsets, 0, 0),
            table.storage_offset() + self.channels.start * channels,
        )


def _blocks(z: Tensor, y: Tensor, stride: int) -> Iterator[_Block]:
    computed, channels, frames = z.shape[1], y.shape[1], y.shape[2]
    for first, copies, width in _copies(channels, computed):
        every = slice(first, first + copies * width)
        for start, sources, offsets in _copies(frames, stride):
            # Along time the roles are swapped: each source is followed by its copies.
            begin = start // stride
            yield _Block(
                width,
                every,
                copies,
                slice(begin, begin + sources),
                slice(start, start + sources * offsets),
                offsets,
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
        for block in _blocks(z, grad, len(scale)):
            given, factors = block.target(grad), block.factors(scale)
            tables = [block.factors(table) for table in (grad_scale, grad_shift)]
            source = block.source(z)
            for q in range(block.copies):
                for r in range(block.offsets):
                    part = given[:, q, :, :, r]
                    if grad_z is not None:
                        block.source(grad_z).addcmul_(part, factors[q, :, :, r])
                    if need_tables and (q, r, block.channels.start) != (0, 0, 0):
                        tables[0][q, :, 0, r, 0, 0] += (part * source).sum((0, 2, 3, 4))
                        tables[1][q, :, 0, r, 0, 0] += part.sum((0, 2, 3, 4))
        return grad_z, grad_scale, grad_shift, None
