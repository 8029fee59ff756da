# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What MMAction2 sees: backbones, neck, heads and loss in its registries."""

from ..installation import has_detection
from ..ops import ComputationBudgetLoss
from .backbones import VARED2X3D, VARED2ResNet, VARED2ResNet2Plus1d, VARED2ResNet3d
from .dynamize import DynamicFeatures, dynamize
from .forms import accelerate
from .heads import VARED2I3DHead, VARED2TSNHead, VARED2X3DHead
from .neck import ModulatedFeatures, SoftModulationGateNeck
from .policy import dynamic_layers, force_policies, force_policy
from .static import static_cost, to_static

if has_detection():
    from . import detection  # noqa: F401  (registers its head)
else:
    from . import without_detection  # noqa: F401  (registers who says what to install)

__all__ = [
    'VARED2X3D',
    'ComputationBudgetLoss',
    'DynamicFeatures',
    'ModulatedFeatures',
    'SoftModulationGateNeck',
    'VARED2I3DHead',
    'VARED2ResNet',
    'VARED2ResNet2Plus1d',
    'VARED2ResNet3d',
    'VARED2TSNHead',
    'VARED2X3DHead',
    'accelerate',
    'dynamic_layers',
    'dynamize',
    'force_policies',
    'force_policy',
    'static_cost',
    'to_static',
]
