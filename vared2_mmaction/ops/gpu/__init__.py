# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Layers executed by Triton kernels that read the decisions of gates on the GPU.

The host never waits for an answer: what a clip does not need is left out by the kernels
themselves, so that a whole network can be replayed as one CUDA graph. Modules of this package
import Triton; nothing else does.
"""

import functools

from mmengine.utils import digit_version

OLDEST = '3.6'
"""Release of Triton that kernels are written for; PyTorch 2.11 brings it."""


@functools.cache
def is_available() -> bool:
    """Whether there is a Triton that kernels can be compiled with."""
    try:
        import triton
    except ImportError:
        return False
    return digit_version(triton.__version__) >= digit_version(OLDEST)
