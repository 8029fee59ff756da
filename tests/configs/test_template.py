# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The template: what a user changes is said once, and trains as it is."""

import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from ..loading import load_tool

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
TEMPLATE = CONFIGS / 'template.py'
LINE = '# ---'
SMALL = """
model['backbone'].update(depth=18, stage_blocks=(1, 1, 1, 1), base_channels=4)
model['cls_head'].update(in_channels=32)
default_hooks['logger'] = dict(interval=1)
"""


def changed(text, **values):
    """The template with other values above its line, each of which stands in one line."""
    above, below = text.split(LINE)
    for names, value in values.items():
        pattern = rf'^{names.replace("__", ", ")} = .*$'
        assert len(re.findall(pattern, above, re.MULTILINE)) == 1, names
        above = re.sub(pattern, f'{names.replace("__", ", ")} = {value!r}', above, flags=re.M)
    return f'{above}{LINE}{below}'


@pytest.fixture
def mine(tmp_path, videos):
    """A copy of the template for the tiny video set."""
    (tmp_path / '_base_').symlink_to(CONFIGS / '_base_')
    text = changed(
        TEMPLATE.read_text(),
        data_root=str(videos),
        num_classes=2,
        clip_len__frame_interval=(4, 2),
        size=35,
        flip_ratio=0.25,
        batch_size__num_workers=(2, 0),
        max_epochs=2,
        lr=0.001,
        budget=0.3,
        load_from=None,
    )
    path = tmp_path / 'mine.py'
    path.write_text(text + SMALL)
    return path


def test_there_are_about_ten_lines_to_change():
    lines = TEMPLATE.read_text().split(LINE)[0].splitlines()
    assert 8 <= sum(not line.startswith('#') for line in lines) <= 14


def test_all_else_follows(mine, videos):
    cfg, template = Config.fromfile(mine), Config.fromfile(TEMPLATE)
    assert cfg.model.cls_head.num_classes == 2
    assert cfg.model.cls_head.loss_budget.budget == 0.3
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=0.001, weight_decay=0.05)
    assert cfg.auto_scale_lr.base_batch_size == 2
    assert cfg.param_scheduler[0].T_max == cfg.train_cfg.max_epochs == 2
    hooks = [[dict(h) for h in c.custom_hooks] for c in (cfg, template)]
    for mine_hook, hook in zip(*hooks, strict=True):
        for key in {'begin', 'fall'} & hook.keys():  # shares of the training
            assert mine_hook[key] == pytest.approx(hook[key] * 2 / template.train_cfg.max_epochs)
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        assert (loader.batch_size, loader.num_workers) == (2, 0)
        assert loader.dataset.ann_file == f'{videos}/{split}.txt'
        assert loader.dataset.data_prefix == dict(video=str(videos))
        steps = {step.type: step for step in loader.dataset.pipeline}
        assert (steps['SampleFrames'].clip_len, steps['SampleFrames'].frame_interval) == (4, 2)
        assert steps['SampleFrames'].get('test_mode', False) == (split != 'train')
        sides = [s.get('scale') or (s.get('crop_size'),) for s in loader.dataset.pipeline]
        assert {side[-1] for side in sides if side[-1]} == {40, 35}
        assert ('Flip' in steps) == (split == 'train')
    assert steps.keys() >= {'DecordInit', 'PackActionInputs'}


def test_it_trains(mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    load_tool('train').main([str(mine), '--work-dir', 'out', '--seed', '0'])
    (path,) = tmp_path.glob('out/*/vis_data/scalars.json')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [line for line in lines if 'loss_budget' in line]
    assert len(steps) == 2 * 3
    tested = [line for line in lines if 'compute/ratio' in line]
    assert len(tested) == 2
    assert all(0 < line['compute/ratio'] <= 1 for line in tested)
    first, last = (torch.load(tmp_path / 'out' / f'epoch_{i}.pth') for i in (1, 2))
    key = 'backbone.layer1.0.conv1.conv.conv_s.weight'
    assert (first['state_dict'][key] != last['state_dict'][key]).any()
    gates = [key for key in last['state_dict'] if key.endswith('gate.fc2.bias')]
    assert any((first['state_dict'][k] != last['state_dict'][k]).any() for k in gates)
