# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Where kernels are tested: on a GPU, or where there is none, by Triton's interpreter."""

import os

import pytest
import torch

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
# The interpreter's products know no bfloat16.
HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16
EXACT = {'allow_tf32': False, 'deterministic': False, 'benchmark': False, 'enabled': True}
"""Of cuDNN: products of float32 that are not rounded to TF32, by kernels too."""
needs_kernels = pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get('TRITON_INTERPRET') != '1',
    reason='needs a GPU or the interpreter',
)
