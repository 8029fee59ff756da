# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""A tiny set of moving boxes, and an untrained detector for it that decides something."""

from typing import NamedTuple

import torch
from mmengine.config import Config

from synthetic.moving_boxes import MovingBoxes, make_moving_boxes
from vared2_mmaction.apis import load_model

from ..loading import TOOLS

CONFIG = TOOLS.parent / 'configs' / 'detection' / 'vared2_resnet3d_moving-boxes.py'
SMALL = {
    'model.backbone.base_channels': 8,
    'model.roi_head.bbox_head.in_channels': 32,
    'test_dataloader.num_workers': 0,
    'test_dataloader.persistent_workers': False,
    'load_from': None,
}


class Project(NamedTuple):
    """Paths of a config and a checkpoint, and of the folder of its data."""

    config: str
    checkpoint: str
    data: str


def write_project(folder):
    """Writes data, config and checkpoint.

    Args:
        folder: Where to.
    """
    data = folder / 'moving_boxes'
    make_moving_boxes(data, MovingBoxes(train=1, val=1, test=6))
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict(SMALL)
    config, checkpoint = folder / 'config.py', folder / 'checkpoint.pth'
    config.write_text(cfg.pretty_text.replace('data/moving_boxes', str(data)))
    model, _ = load_model(Config.fromfile(config))
    random = torch.Generator().manual_seed(0)
    for key, parameter in model.named_parameters():
        if key.endswith('gate.fc2.bias'):
            torch.nn.init.zeros_(parameter)
        if key.endswith('gate.fc2.weight') or 'fc_cls' in key:
            torch.nn.init.normal_(parameter, generator=random)
    torch.save({'state_dict': model.state_dict()}, checkpoint)
    return Project(str(config), str(checkpoint), str(data))
