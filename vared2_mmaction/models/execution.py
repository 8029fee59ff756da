# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What executes the gates and convolutions of a fused network."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from ..ops import gpu
from ..ops.compiled import CompiledConv, CompiledGate, is_compilable, tells_kernels
from ..ops.library import is_available, library


class Execution(NamedTuple):
    """Makes what executes a part of a network; None is PyTorch's own operations."""

    convolution: Callable[[nn.Module], Any]
    """For a dynamic convolution, or a stock one in its fastest form."""
    gate: Callable[[], Any]
    """For a gate."""
    innermost: bool = False
    """Whether channels are to lie innermost on every device."""


def by_operations() -> Execution:
    """Operations of PyTorch."""
    return Execution(lambda conv: None, lambda: None)


def by_compiled_code() -> Execution:
    """C++ for float32 on a CPU; see :mod:`vared2_mmaction.ops.compiled`.

    Raises:
        RuntimeError: If it cannot be compiled.
    """
    library()
    return Execution(lambda conv: CompiledConv() if is_compilable(conv) else None, CompiledGate)


def by_kernels() -> Execution:
    """Triton kernels on a GPU; see :mod:`vared2_mmaction.ops.gpu`.

    Raises:
        RuntimeError: If there is no Triton that is new enough.
    """
    if not gpu.is_available():
        raise RuntimeError(f'compiled=True needs Triton {gpu.OLDEST} or newer on a GPU')
    from ..ops.gpu.gate import DeviceGate
    from ..ops.gpu.layer import DeviceConv

    return Execution(
        lambda conv: DeviceConv() if tells_kernels(conv) else None, DeviceGate, innermost=True
    )


def can_execute(device: str) -> bool:
    """Whether there is what compiled code for a device needs: C++ that is compiled or
    can be, or Triton."""
    return is_available() if device == 'cpu' else gpu.is_available()


def execution_on(device: torch.device) -> Execution:
    """Compiled code for a device.

    Raises:
        RuntimeError: If there is none.
    """
    return by_kernels() if device.type == 'cuda' else by_compiled_code()
