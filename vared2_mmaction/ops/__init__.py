# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Pure tensor code: gate, cheap operations, dynamic convolution and their cost.

Knows PyTorch, helpers of MMEngine, and nothing else.
"""

from .answer import Modulation
from .cheap import CHEAP_OPERATIONS, ChannelOptions, TemporalOptions
from .conv import DynamicConv2d, DynamicConv3d
from .decision import LayerDecision, charge, collect, report_fixed
from .gate import SoftModulationGate
from .options import kept

__all__ = [
    'CHEAP_OPERATIONS',
    'ChannelOptions',
    'DynamicConv2d',
    'DynamicConv3d',
    'LayerDecision',
    'Modulation',
    'SoftModulationGate',
    'TemporalOptions',
    'charge',
    'collect',
    'kept',
    'report_fixed',
]
