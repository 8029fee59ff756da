# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Networks for inference."""

from .memory import keep_freed_memory
from .optimize import executed, optimize

__all__ = ['executed', 'keep_freed_memory', 'optimize']
