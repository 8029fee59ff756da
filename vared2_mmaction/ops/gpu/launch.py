# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What kernels can be launched on."""

import torch
import triton
from torch import Tensor

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether kernels are interpreted, on a CPU, instead of compiled; TRITON_INTERPRET=1 says so."""
TYPES = (torch.float32, torch.float16, torch.bfloat16)


def reads(x: Tensor) -> bool:
    """Whether kernels can read a tensor, and nobody asks for gradients."""
    on_device = x.is_cuda or INTERPRETED
    return on_device and x.dtype in TYPES and not torch.is_grad_enabled()
