# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Small detectors, their static twins, and data for them."""

import copy
from typing import Any

import torch
from mmaction.registry import MODELS
from mmaction.structures import ActionDataSample
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.structures import InstanceData
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..models.backbones import STOCK
from ..models.test_backbones import randomise

BACKBONES = ('ResNet3dSlowOnly', 'ResNet3d', 'ResNet2Plus1d', 'ResNet3dSlowFast')
NAMED = ('ResNet3d', 'ResNet2Plus1d')
CHANNELS = {'ResNet3dSlowOnly': 256, 'ResNet3d': 256, 'ResNet2Plus1d': 64, 'ResNet3dSlowFast': 320}
CLASSES = 6  # the background and five actions


def detector(name: str, dynamic: bool = True, **head: Any) -> nn.Module:
    """A ``FastRCNN`` with a small backbone, or its static twin; its gates differ from clip to
    clip."""
    config, _ = STOCK[name]
    backbone: dict[str, Any] = {'type': f'mmaction.{name}', **copy.deepcopy(config)}
    if dynamic and name in NAMED:
        backbone['type'] = f'mmaction.VARED2{name}'
    elif dynamic:
        backbone = {'type': 'mmaction.VARED2Backbone', 'backbone': backbone}
    assigner = {'pos_iou_thr': 0.9, 'neg_iou_thr': 0.9, 'min_pos_iou': 0.9}
    model = MODELS.build(
        ConfigDict(
            {
                'type': 'FastRCNN',
                '_scope_': 'mmdet',
                'backbone': backbone,
                'neck': {'type': 'mmaction.SoftModulationGateNeck'} if dynamic else None,
                'roi_head': {
                    'type': 'VARED2AVARoIHead' if dynamic else 'AVARoIHead',
                    'bbox_roi_extractor': {
                        'type': 'SingleRoIExtractor3D',
                        'featmap_stride': 32,
                        'output_size': 4,
                    },
                    'bbox_head': {
                        'type': 'BBoxHeadAVA',
                        'background_class': True,
                        'in_channels': CHANNELS[name],
                        'num_classes': CLASSES,
                        'topk': (3,),
                    },
                    **head,
                },
                'data_preprocessor': {
                    'type': 'mmaction.ActionDataPreprocessor',
                    'format_shape': 'NCTHW',
                },
                'train_cfg': {
                    'rcnn': {
                        'assigner': {'type': 'MaxIoUAssignerAVA', **assigner},
                        'sampler': {'type': 'RandomSampler', 'num': 32, 'pos_fraction': 1},
                        'pos_weight': 1.0,
                    }
                },
                'test_cfg': {'rcnn': None},
            }
        )
    )
    MMLogger.get_current_instance().setLevel('ERROR')
    model.init_weights()
    for module in model.modules():
        if isinstance(module, _BatchNorm):  # some start at zero, and their branches say nothing
            nn.init.uniform_(module.weight, 0.5, 1.5)
    if dynamic:
        randomise(model)
    return model


def batch(name: str, clips: int) -> dict[str, Any]:
    """Clips of noise, each louder than the last, with one box and two proposals more each clip."""
    shape = STOCK[name][1][1:]
    size = shape[-1]
    samples = []
    for i in range(clips):
        boxes = torch.rand(1 + i, 4) * size / 2
        boxes[:, 2:] += size / 2  # below and right of the other corner
        labels = torch.zeros(1 + i, CLASSES)
        labels[torch.arange(1 + i), 1 + torch.arange(1 + i) % (CLASSES - 1)] = 1
        labels[:, -1] = 1  # two actions at once
        sample = ActionDataSample(metainfo={'img_shape': (size, size), 'img_key': f'v{i},0001'})
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
        noise = torch.rand(2, 4) * size / 4
        noise[:, 2:] += size / 2
        sample.proposals = InstanceData(bboxes=torch.cat([boxes, noise]))
        samples.append(sample)
    return {'inputs': [(i + 1) * torch.randn(shape) for i in range(clips)], 'data_samples': samples}


def losses(model: nn.Module, data: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Losses of a batch, which stays as it is; stock heads take proposals out of it."""
    data = model.data_preprocessor(copy.deepcopy(data), True)
    with torch.random.fork_rng():
        return model(**data, mode='loss')


@torch.no_grad()
def detect(model: nn.Module, data: dict[str, Any], clip: int = 0) -> ActionDataSample:
    """Detections in a clip of a batch; stock heads take one at a time."""
    model.eval()
    alone = {key: [copy.deepcopy(values[clip])] for key, values in data.items()}
    (sample,) = model.test_step(alone)
    return sample
