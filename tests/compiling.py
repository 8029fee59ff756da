# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What tests of compiled code need."""

import pytest
import torch

from vared2_mmaction.executors.cpu.library import missing_tool

needs_compiler = pytest.mark.skipif(
    not (missing_tool() is None and torch.backends.mkldnn.is_available()),
    reason='needs a C++ compiler, and PyTorch with oneDNN',
)
EXECUTORS = ['eager', pytest.param('cpu', marks=needs_compiler)]
"""Names of the executors on a CPU."""
