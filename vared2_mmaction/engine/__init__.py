# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Hooks of the training loop."""

from .budget_hook import BudgetScheduleHook
from .freeze_hook import FreezeGatesHook
from .usage_hook import PolicyUsageHook

__all__ = ['BudgetScheduleHook', 'FreezeGatesHook', 'PolicyUsageHook']
