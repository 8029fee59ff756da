# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Gradients of zero for parameters that a forward pass does not use.

``DistributedDataParallel`` waits for a gradient of every parameter in every step, and weight decay
and momentum reach those that have one.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .parts import parts_like


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
        return gradient, *parts_like(ctx.parameters, torch.zeros)
