# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Settings of the tests of kernels."""

import pytest
import torch

from .device import EXACT


@pytest.fixture(autouse=True)
def _exact():
    """Products of float32 that are not rounded to TF32, by kernels and by cuDNN."""
    with torch.backends.cudnn.flags(**EXACT):
        yield
