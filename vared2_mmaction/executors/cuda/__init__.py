# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Convolutions on a GPU: cuDNN for the dearest options in use, Triton for gates and rebuilding.

The host never waits for a decision, so that a network can be replayed as one CUDA graph. Options
that no clip uses are not computed; the cheaper ones among those in use are rebuilt, for each clip
its own. Modules of this package import Triton; the package itself does not.
"""

import functools
from typing import Any

import torch
from mmengine.utils import digit_version

from ..base import Backend, LayerRecord, register

OLDEST = '3.6'
"""Release of Triton that kernels are written for; PyTorch 2.11 brings it."""
TYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Types of weights and maps."""


@functools.cache
def is_available() -> bool:
    """Whether there is a Triton that kernels can be compiled with."""
    try:
        import triton
    except ImportError:
        return False
    return digit_version(triton.__version__) >= digit_version(OLDEST)


def is_interpreted() -> bool:
    """Whether kernels are interpreted, on a CPU, as TRITON_INTERPRET=1 says."""
    if not is_available():
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


def check_available() -> None:
    """Raise a RuntimeError that says what is missing, if something is."""
    if not is_available():
        raise RuntimeError(f'the executor for GPUs needs Triton {OLDEST} or newer')


def create(record: LayerRecord) -> Any:
    """A :class:`~.layer.CudaConv` of a layer; None unless there is Triton, and weights lie on a
    GPU, in one of ``TYPES``."""
    weight = record.weight
    on_device = weight.is_cuda or is_interpreted()
    if not (is_available() and on_device and weight.dtype in TYPES):
        return None
    from .layer import CudaConv

    return CudaConv(record)


register(
    Backend('cuda', 'cuda (cuDNN and Triton)', is_available, create, check_available, by_clip=False)
)
