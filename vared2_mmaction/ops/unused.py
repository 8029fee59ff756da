# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Gradients of zero for parameters that a forward pass does not use.

``DistributedDataParallel`` waits for a gradient of every parameter in every step, and weight decay
and momentum reach those that have one.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


def with_zero_gradients(x: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """A tensor as it is, whose backward pass gives parameters a gradient of zero.

    Args:
        x: The tensor.
        parameters: Parameters, of which those that want no gradient get none.
    """
    wanted = [p for p in parameters if p.requires_grad]
    return _WithZeroGradients.apply(x, *wanted) if wanted else x


class _WithZeroGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = parameters
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, *_zeros_like(ctx.parameters)


def _zeros_like(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Zeros of the shapes of tensors; those of a type and device are parts of one."""
    sizes: dict[tuple[Any, ...], list[int]] = {}
    for t in tensors:
        sizes.setdefault((t.dtype, t.device), []).append(t.numel())
    parts = {
        (dtype, device): iter(torch.zeros(sum(n), dtype=dtype, device=device).split(n))
        for (dtype, device), n in sizes.items()
    }
    for t in tensors:
        part = next(parts[t.dtype, t.device])
        yield part if t.dim() == 1 else part.view(t.shape)
