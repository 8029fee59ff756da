# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Stock recognizers with a dynamic and a static network, and data for them."""

from typing import Any

import torch
from mmaction.registry import MODELS
from mmaction.structures import ActionDataSample
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from torch import nn

from .backbones import STOCK

CLASSES = 5
CHANNELS = {'ResNet': 128, 'ResNet3d': 256, 'ResNet2Plus1d': 64, 'X3D': 432}
HEADS = {'ResNet': 'TSN', 'ResNet3d': 'I3D', 'ResNet2Plus1d': 'I3D', 'X3D': 'X3D'}


def recognizer(
    name: str, dynamic: bool = True, test_cfg: dict | None = None, **head: Any
) -> nn.Module:
    """A recognizer with one of the four named backbones, or its static twin."""
    config, _ = STOCK[name]
    prefix = 'VARED2' if dynamic else ''
    segments = {'num_segments': 4} if dynamic and name == 'ResNet' else {}
    model = MODELS.build(
        {
            'type': 'Recognizer2D' if name == 'ResNet' else 'Recognizer3D',
            'backbone': {'type': f'{prefix}{name}', **config, **segments},
            'neck': {'type': 'SoftModulationGateNeck'} if dynamic else None,
            'cls_head': {
                'type': f'{prefix}{HEADS[name]}Head',
                'num_classes': CLASSES,
                'in_channels': CHANNELS[name],
                'dropout_ratio': 0,
                'average_clips': 'prob',
                **head,
            },
            'test_cfg': test_cfg,
        }
    )
    MMLogger.get_current_instance().setLevel('ERROR')
    model.init_weights()
    return model


def batch(name: str, n: int, views: int = 1, label: Any = None) -> dict[str, Any]:
    """What the data loader gives: n videos of some views of noise, each louder than the last."""
    shape = STOCK[name][1]
    clip = (4 * views, *shape[1:]) if name == 'ResNet' else (views, *shape[1:])
    samples = []
    for i in range(n):
        samples.append(ActionDataSample().set_gt_label(i % CLASSES if label is None else label))
    return {'inputs': [(i + 1) * torch.randn(clip) for i in range(n)], 'data_samples': samples}


def train_step(model: nn.Module, data: dict[str, Any], lr: float = 0.01) -> dict[str, float]:
    """One step as MMEngine does it; the log."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    model.train()
    log = model.train_step(data, OptimWrapper(optimizer))
    return {key: value.item() for key, value in log.items()}
