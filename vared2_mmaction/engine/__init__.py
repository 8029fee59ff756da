# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Hooks of the training loop, and what optimizers are made of."""

from . import optimizers  # noqa: F401  (mends one of MMAction2's constructors)
from .budget_hook import BudgetScheduleHook
from .fix_hook import FixOptionsHook
from .freeze_hook import FreezeGatesHook
from .graph_hook import CUDAGraphHook
from .prune_hook import PruneOptionsHook
from .usage_hook import PolicyUsageHook

__all__ = [
    'BudgetScheduleHook',
    'CUDAGraphHook',
    'FixOptionsHook',
    'FreezeGatesHook',
    'PolicyUsageHook',
    'PruneOptionsHook',
]
