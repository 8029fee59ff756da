# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Where kernels are tested, on a GPU or by Triton's interpreter, and records of layers."""

import pytest
import torch
from torch import nn

from vared2_mmaction.executors import records
from vared2_mmaction.executors.base import LayerRecord
from vared2_mmaction.executors.cuda import is_available, is_interpreted

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
EXACT = {'allow_tf32': False, 'deterministic': False, 'benchmark': False, 'enabled': True}
"""Of cuDNN: products of float32 that are not rounded to TF32."""
needs_kernels = pytest.mark.skipif(
    not is_available() or not (torch.cuda.is_available() or is_interpreted()),
    reason='needs Triton, and a GPU or its interpreter',
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')


def record_of(layer: nn.Module, relu: bool = False) -> LayerRecord:
    """The record of a convolution, dynamic or not."""
    record = records.record_of(layer, 'layer', relu)
    assert record is not None
    return record
