# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Trained and static networks at other budgets, without training."""

from .calibration import Calibration, set_budget
from .cheap_fit import start_from_static
from .fix import common_options
from .shift import shift_gates

__all__ = ['Calibration', 'common_options', 'set_budget', 'shift_gates', 'start_from_static']
