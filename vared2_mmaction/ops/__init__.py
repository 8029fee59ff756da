# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The definition: what the method is, in plain PyTorch that asks the host for nothing.

Reads from top to bottom: options, gate, cheap operations, mixing, the dynamic convolution, its
cost, the loss, and a naive reference. How it is executed fast is :mod:`vared2_mmaction.executors`.
"""

from .cheap import ChannelOptions, TemporalOptions
from .conv import DynamicConv2d, DynamicConv3d
from .cost import COLUMNS, Decision, charge
from .gate import Modulation, SoftModulationGate
from .loss import ComputationBudgetLoss
from .options import Options, kept

__all__ = [
    'COLUMNS',
    'ChannelOptions',
    'ComputationBudgetLoss',
    'Decision',
    'DynamicConv2d',
    'DynamicConv3d',
    'Modulation',
    'Options',
    'SoftModulationGate',
    'TemporalOptions',
    'charge',
    'kept',
]
