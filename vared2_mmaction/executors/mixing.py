# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What mixes options in training: kernels on a GPU, C++ on a CPU if that is asked for, or the
definition."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ops.mixing import mix
from . import cuda
from .base import leaves_python
from .cpu.training import mix_compiled

_by_kernels: Callable[..., Tensor] | None = None
if torch.cuda.is_available() and cuda.is_available():
    from .cuda.training import mix_by_kernels as _by_kernels  # imports Triton


def mix_on_gpu(z: Tensor, *options: Any) -> Tensor:
    """Mix options; arguments are those of :func:`vared2_mmaction.ops.mixing.mix`.

    Kernels mix what lies on a GPU, in compiled graphs as well. All else is mixed by the definition:
    what is traced or exported, and other types than ``executors.cuda.TYPES``.
    """
    mixes = mix
    if _by_kernels is not None and z.is_cuda and z.dtype in cuda.TYPES and not leaves_python():
        mixes = _by_kernels
    return mixes(z, *options)


def mix_anywhere(z: Tensor, *options: Any) -> Tensor:
    """Mix options by kernels on a GPU, and in C++ on a CPU; see :func:`mix_on_gpu` and
    :func:`~.cpu.training.mix_compiled`."""
    mixes = mix_on_gpu if z.is_cuda else mix_compiled
    return mixes(z, *options)
