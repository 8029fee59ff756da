# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Short trainings of a tiny network on the tiny video set, through MMEngine's Runner."""

import itertools
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmaction.registry import HOOKS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from vared2_mmaction.engine.network import network_of
from vared2_mmaction.models import dynamic_layers

ROOT = Path(__file__).resolve().parents[2]
BATCH, STEPS = 2, 3  # six videos
_names = (f'training_{i}' for i in itertools.count())  # MMEngine keeps one visualizer for each


@HOOKS.register_module()
class GateSetter(Hook):
    """Gives every gate weights of a kind before training, and closes those whose name matches."""

    def __init__(self, bias: float, std: float = 0.0, closed: str = '$^') -> None:
        self.bias = bias
        self.std = std
        self.closed = closed

    def before_train(self, runner: Runner) -> None:
        random = torch.Generator().manual_seed(0)
        for name, layer in dynamic_layers(network_of(runner)).items():
            closed = re.search(self.closed, name)
            std, bias = (0.0, -5.0) if closed else (self.std, self.bias)
            layer.gate.fc2.weight.data.normal_(std=std, generator=random)
            layer.gate.fc2.bias.data.fill_(bias)


CLOSED, OPEN, VARIED = (
    {'type': 'GateSetter', 'bias': -5.0},
    {'type': 'GateSetter', 'bias': 1.0},
    {'type': 'GateSetter', 'bias': 0.0, 'std': 1.0, 'closed': r'layer2|layer3.*conv2.*conv_t'},
)


class Training(NamedTuple):
    """A finished training."""

    runner: Runner
    seen: list[tuple[Tensor, Tensor]]
    """Policy and compute ratio of each step's clips, as the head got them."""

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All that LocalVisBackend wrote."""
        (path,) = Path(self.runner.work_dir).glob('*/vis_data/scalars.json')
        return [json.loads(line) for line in path.read_text().splitlines()]

    @property
    def usage(self) -> dict[int, dict[str, float]]:
        """What the usage hook wrote, by step."""
        lines = [line for line in self.lines if 'usage/compute_ratio_mean' in line]
        assert len({line['step'] for line in lines}) == len(lines)
        return {line.pop('step'): line for line in lines}

    @property
    def warnings(self) -> list[str]:
        """Warnings of the usage hook in the log file."""
        lines = self.log.splitlines()
        return [line for line in lines if 'WARNING' in line and 'PolicyUsageHook' in line]

    @property
    def log(self) -> str:
        """The log file."""
        (path,) = Path(self.runner.work_dir).glob('*/*.log')
        return path.read_text()


def config(videos: Path, work_dir: Path, hooks: list[dict], **changes: Any) -> Config:
    """A dynamic demo network with a quarter of its channels, whose weights stand still.

    Args:
        videos: Folder of the tiny video set.
        work_dir: Folder for the log.
        hooks: Custom hooks.
        **changes: Further changes, with two underscores between keys.
    """
    cfg = Config.fromfile(ROOT / 'configs' / 'demo' / 'vared2_r2plus1d.py')
    loader = {'batch_size': BATCH, 'num_workers': 0, 'persistent_workers': False}
    for split in ('train', 'val'):
        dataset = {'ann_file': str(videos / f'{split}.txt'), 'data_prefix': {'video': str(videos)}}
        cfg.merge_from_dict({f'{split}_dataloader': {'dataset': dataset, **loader}})
    decode, crop, *_ = cfg.train_dataloader.dataset.pipeline
    decode.transforms[1].clip_len = 8
    crop.size = 24
    cfg.model.backbone.dynamic = {}
    cfg.model.backbone.base_channels, cfg.model.cls_head.in_channels = 4, 32
    cfg.optim_wrapper = {
        'type': 'OptimWrapper',
        'optimizer': {'type': 'SGD', 'lr': 0.0},
        'clip_grad': {'max_norm': 20},
    }
    cfg.merge_from_dict(
        {
            'train_cfg': {'max_epochs': 2, 'val_begin': 9},
            'default_hooks': {'logger': {'interval': 2}},
            'param_scheduler': [],
            'load_from': None,
            'custom_hooks': hooks,
            'work_dir': str(work_dir),
            'experiment_name': next(_names),
            **{key.replace('__', '.'): value for key, value in changes.items()},
        }
    )
    cfg.default_hooks.checkpoint = None
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    return cfg


def train(cfg: Config) -> Training:
    """Train as the config says, and look on from the head."""
    runner = Runner.from_cfg(cfg)
    training = Training(runner, [])

    def look(head: Any, args: Any) -> None:
        if head.training:
            training.seen.append((args[0].policy, args[0].ratio.detach()))

    network_of(runner).cls_head.register_forward_pre_hook(look)
    runner.train()
    return training
