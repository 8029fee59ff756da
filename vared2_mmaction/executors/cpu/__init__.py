# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""C++ for float32 clips on a CPU."""

from ..base import Backend, register
from . import library
from .convolution import CpuConv

register(Backend('cpu', 'cpu (C++)', library.is_available, CpuConv.of, library.library))
