# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""How convolutions of known weights are executed fast; see README.md in this folder."""

from . import cpu, cuda
from .base import BACKENDS, Backend, Choice, Executor, LayerRecord, register
from .module import ExecutedConv

__all__ = [
    'BACKENDS',
    'Backend',
    'Choice',
    'ExecutedConv',
    'Executor',
    'LayerRecord',
    'cpu',
    'cuda',
    'register',
]
