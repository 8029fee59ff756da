# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Write maps that are sums of scaled other maps, each element once.

Blending options is such a sum. Slices, products and concatenations of their own would each pass
over the maps again, twice so in the backward pass; here factors are combined before any map is
touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .forms import empty_clips

Region = tuple[slice, slice, slice]
"""Clips, channels and frames of maps (N, C, T, H, W)."""


class Source(NamedTuple):
    """A part of some maps and the factor of each of its channels."""

    maps: Tensor
    region: Region
    factor: Tensor | None
    """(N, channels) or (1, channels), or None for exactly one."""
    shift: Tensor | None = None
    """What is added to each channel, of the shape of the factor."""


@dataclass
class Mix:
    """Sums to be written; each target region is one sum, and the regions cover the output."""

    sums: list[tuple[Region, list[Source]]] = field(default_factory=list)

    def add(self, target: Region, sources: list[Source]) -> None:
        """Add a region and what it is the sum of."""
        self.sums.append((target, sources))

    def write(self, shape: tuple[int, ...], maps: Tensor) -> Tensor:
        """Compute the output.

        Without gradients and where the maps have the shape of the output, they are overwritten:
        regions that stay as they are cost nothing. This asks that a sum's first source be its own
        region of the maps, and that others lie in regions that were added before.

        Args:
            shape: Shape of the output, (N, C, T, H, W).
            maps: The maps that sources are regions of, in whose layout the output is.
        """
        in_place = maps.shape == shape and not torch.is_grad_enabled()
        tensors: list[Tensor] = []
        position: dict[int, int] = {}

        def place(tensor: Tensor | None) -> int | None:
            if tensor is None:
                return None
            if id(tensor) not in position:
                position[id(tensor)] = len(tensors)
                tensors.append(tensor)
            return position[id(tensor)]

        plan = []
        for target, sources in reversed(self.sums) if in_place else self.sums:
            merged = _merge(sources)
            shifts = [s.shift for s in merged if s.shift is not None]
            terms = [(place(s.maps), s.region, place(s.factor)) for s in merged]
            plan.append((target, terms, place(sum(shifts[1:], shifts[0]) if shifts else None)))
        if in_place:
            return _write(maps, plan, tensors)
        return _Write.apply(empty_clips(shape, maps), plan, *tensors)


def _merge(sources: list[Source]) -> list[Source]:
    """Add up the factors of sources that are the same region of the same maps."""
    merged: dict[tuple, Source] = {}
    for source in sources:
        key = (id(source.maps), *((s.start, s.stop, s.step) for s in source.region))
        if key in merged:
            other = merged[key]
            assert other.factor is not None
            assert source.factor is not None
            shift = other.shift if source.shift is None else source.shift
            if other.shift is not None and source.shift is not None:
                shift = other.shift + source.shift
            source = source._replace(factor=other.factor + source.factor, shift=shift)
        merged[key] = source
    return list(merged.values())


def _write(out: Tensor, plan: list, tensors: Sequence[Tensor]) -> Tensor:
    for target, terms, shift in plan:
        part = out[target]
        for i, (maps, region, factor) in enumerate(terms):
            source = tensors[maps][region]
            scale = None if factor is None else _spread(tensors[factor])
            if i == 0 and shift is not None:
                _affine(source, scale, _spread(tensors[shift]), part)
            elif i == 0 and scale is not None:
                torch.mul(source, scale, out=part)
            elif i == 0 and tensors[maps] is not out:
                part.copy_(source)
            elif i > 0:
                part.add_(source) if scale is None else part.addcmul_(source, scale)
    return out


class _Write(torch.autograd.Function):
    """Forward and backward of the sums, without a graph of their parts."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, plan: list, *tensors: Tensor) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(*tensors)
        ctx.mark_dirty(out)
        return _write(out, plan, tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        grads: list[Tensor | None] = [
            torch.zeros_like(t) if need else None for t, need in zip(tensors, needed, strict=True)
        ]
        for target, terms, shift in ctx.plan:
            part = grad[target]
            if shift is not None and (given := grads[shift]) is not None:
                given.add_(part.sum((2, 3, 4)).sum_to_size(given.shape))
            for maps, region, factor in terms:
                if (given := grads[maps]) is not None:
                    if factor is None:
                        given[region].add_(part)
                    else:
                        given[region].addcmul_(part, _spread(tensors[factor]))
                if factor is not None and (given := grads[factor]) is not None:
                    product = (part * tensors[maps][region]).sum((2, 3, 4))
                    given.add_(product.sum_to_size(given.shape))
        return (None, None, *grads)


def _affine(source: Tensor, scale: Tensor | None, shift: Tensor, out: Tensor) -> None:
    if scale is None:
        torch.add(source, shift, out=out)
    else:
        torch.addcmul(shift.expand_as(source), source, scale, out=out)


def _spread(factor: Tensor) -> Tensor:
    return factor[:, :, None, None, None]
