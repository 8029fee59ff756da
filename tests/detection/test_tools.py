# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The commands on a tiny set of moving boxes and a tiny detector."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mmengine
import pytest
import torch
from mmengine.config import Config

from counting.flops import measure
from studies import detection
from synthetic.moving_boxes import ACTIONS, MovingBoxes, make_moving_boxes
from vared2_mmaction import force_policy
from vared2_mmaction.apis import load_model
from vared2_mmaction.models import dynamic_layers

from ..loading import TOOLS, load_tool

ROOT = TOOLS.parent
STATIC = f"""
_base_ = {str(ROOT / 'configs' / 'detection' / 'static_resnet3d_moving-boxes.py')!r}
model = dict(
    backbone=dict(base_channels=8), roi_head=dict(bbox_head=dict(in_channels=32, dropout_ratio=0)))
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(batch_size=4, **loader)
val_dataloader = loader
test_dataloader = loader
train_cfg = dict(max_epochs=1, val_begin=1, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1), logger=dict(interval=1))
"""
DYNAMIC = """
_base_ = 'static.py'
custom_hooks = [dict(type='BudgetScheduleHook')]
model = dict(
    backbone=dict(type='mmaction.VARED2ResNet3d', dynamic=dict()),
    neck=dict(type='mmaction.SoftModulationGateNeck'),
    roi_head=dict(type='VARED2AVARoIHead', loss_budget=dict(loss_weight=0.5)))
load_from = 'static/epoch_1.pth'
val_evaluator = [_base_.val_evaluator, dict(type='ComputeMetric')]
test_evaluator = [_base_.test_evaluator, dict(type='ComputeMetric')]
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Working folder with data/moving_boxes, and the configs static.py and dynamic.py."""
    folder = tmp_path_factory.mktemp('project')
    make_moving_boxes(folder / 'data' / 'moving_boxes', MovingBoxes(train=12, val=2, test=4))
    (folder / 'static.py').write_text(STATIC)
    (folder / 'dynamic.py').write_text(DYNAMIC)
    return folder


@pytest.fixture(scope='module')
def trained(folder):
    """Trains the static network, then the dynamic one from its weights; returns the folder."""
    for name in ('static', 'dynamic'):
        run(folder, 'train.py', f'{name}.py', '--work-dir', name, '--seed', '0')
    return folder


def run(folder, tool, *arguments):
    env = {'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path]), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', str(TOOLS / tool), *arguments],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def test_training_and_testing(trained, monkeypatch):
    monkeypatch.chdir(trained)
    logs = sorted(trained.glob('dynamic/*/vis_data/scalars.json'))
    log = [json.loads(line) for line in logs[-1].read_text().splitlines()]
    steps = [line for line in log if 'loss_budget' in line]
    assert steps
    for step in steps:
        total = step['loss_action_cls'] + step['loss_budget']
        assert step['loss'] == pytest.approx(total, rel=1e-4)
        assert 0 < step['compute_ratio'] <= 1
    assert 'mAP/overall' in log[-1]
    assert 0 < log[-1]['compute/ratio'] <= 1
    config, checkpoint = str(trained / 'dynamic.py'), 'dynamic/epoch_1.pth'
    printed = run(trained, 'test.py', config, checkpoint, '--work-dir', 't', '--dump', 'd.pkl')
    assert 'compute/ratio' in printed
    samples = mmengine.load(trained / 'd.pkl')
    layers = len(dynamic_layers(load_model(Config.fromfile(config))[0]))
    with open(trained / 'data/moving_boxes/annotations/test.csv') as file:
        assert len(samples) == len({line.split(',')[0] for line in file})
    for sample in samples:
        assert 0 < sample['compute_ratio'] <= 1
        assert sample['policy'].shape == (1, layers, 2)
        boxes, scores = (sample['pred_instances'][key] for key in ('bboxes', 'scores'))
        assert boxes.shape == (len(scores), 4)
        assert scores.shape[1] == 1 + len(ACTIONS)
    score = detection.score(Config.fromfile(config), 'd.pkl')
    (line,) = [line for line in printed.splitlines() if 'Epoch(test)' in line and 'mAP' in line]
    assert f'mAP/overall: {score.mean_ap:.4f}' in line
    assert score.least <= score.ratio <= score.most
    assert score.ratio < score.whole


def test_flops(trained, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(trained)
    tool, out = load_tool('get_flops'), str(tmp_path / 'out.json')
    tool.main(['dynamic.py', 'dynamic/epoch_1.pth', '--data', '--num-videos', '3', '--out', out])
    found = json.loads(Path(out).read_text())
    stages = [row['stage'] for row in found['stages']]
    assert stages == ['stem', 'layer1', 'layer2', 'layer3', 'head']
    assert found['clip_sizes'] == [[8, 48, 48]]
    assert found['total']['executed'] == found['total']['expected']
    head = found['stages'][-1]
    assert head['static'] == head['executed'] == 32 * (1 + len(ACTIONS))  # one box
    tool.main(['static.py', '--shape', '3', '8', '48', '48', '--out', out])
    static = json.loads(Path(out).read_text())
    assert static['total']['static'] == found['total']['static']
    assert static['total']['overhead'] == 0


@pytest.mark.parametrize('mode', ['infer', 'train'])
def test_benchmark(trained, monkeypatch, tmp_path, mode):
    monkeypatch.chdir(trained)
    tool, out = load_tool('benchmark'), str(tmp_path / 'out.json')
    settings = ['--shape', '3', '8', '32', '32', '--batch-sizes', '1', '--runs', '1']
    half = 'channel=1,temporal=1'
    policies = ['--policy', 'full', f'pruned:{half}' if mode == 'train' else half, 'learned']
    tool.main(['dynamic.py', *policies, *settings, '--mode', mode, '--out', out])
    full, half, learned = json.loads(Path(out).read_text())['rows']
    model, _ = load_model(Config.fromfile('dynamic.py'))
    with force_policy(model, 1, 1):
        table = measure(model, [[torch.zeros(1, 3, 8, 32, 32)]]).total
    gates = sum(layer.gate.macs() for layer in dynamic_layers(model).values())
    asked = gates if mode == 'infer' else 0  # nobody asks the gates of a pruned network
    expected = (table.executed + table.overhead - gates + asked) / table.static
    assert half['macs_ratio'] == pytest.approx(expected)
    assert half['macs_ratio'] < 1 < full['macs_ratio']
    assert learned['macs_ratio'] <= full['macs_ratio'] + 0.2
    assert all(row['static_ms'] > 0 and row['dynamic_ms'] > 0 for row in (full, half, learned))


def test_benchmark_of_a_batch_is_refused(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    with pytest.raises(SystemExit):
        load_tool('benchmark').main(['dynamic.py', '--shape', '3', '8', '32', '32'])
    assert '--batch-sizes: expected 1' in capsys.readouterr().err


def test_chance_is_the_share_of_boxes(tmp_path):
    lines = ['a,1,0,0,.5,.5,1,0', 'a,1,0,0,.5,.5,2,0', 'a,1,.1,0,.5,.5,1,1', 'b,1,0,0,.5,.5,3,0']
    (tmp_path / 'ann.csv').write_text('\n'.join(lines))
    expected = (2 / 3 + 1 / 3 + 1 / 3) / 3
    assert detection.chance(str(tmp_path / 'ann.csv')) == pytest.approx(expected)


def test_seeds_are_summed_up():
    runs = [
        detection.Score(0.975, 0.6, 0.61, 0.4, 0.8),
        detection.Score(0.955, 0.5, 0.51, 0.3, 1.0),
    ]
    lines = detection.markdown({'VA-RED2': runs}, 0.177)
    cells = '96.5 ± 1.4 (97.5, 95.5) | 55.0 ± 7.1 (60.0, 50.0) | 56.0 ± 7.1 (61.0, 51.0)'
    assert f'| VA-RED2 | {cells} | 40 - 80, 30 - 100 |' in lines
    assert '| at random | 17.7 | | | |' in lines
