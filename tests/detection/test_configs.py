# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Every config file of detection: what it says, and that it runs."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from mmaction.registry import HOOKS, MODELS, TRANSFORMS
from mmaction.structures import ActionDataSample
from mmaction.utils import register_all_modules
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.evaluator import Evaluator
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.structures import InstanceData

from vared2_mmaction.apis.check import check_config
from vared2_mmaction.models import dynamic_layers

ROOT = Path(__file__).resolve().parents[2] / 'configs' / 'detection'
FILES = sorted(path.stem for path in ROOT.glob('*.py'))
DYNAMIC = [name for name in FILES if name.startswith('vared2')]
SPLITS = ('train', 'val', 'test')


@functools.cache
def load(name):
    register_all_modules()
    return Config.fromfile(ROOT / f'{name}.py')


def test_there_are_recipes_for_every_backbone_and_data_set():
    backbones = ('slowonly-50', 'i3d-50', 'r2plus1d-34')
    wanted = {f'vared2_{backbone}_ava2{v}' for backbone in backbones for v in (1, 2)}
    assert {*wanted, 'vared2_slowonly-50_jhmdb', 'vared2_resnet3d_moving-boxes'} == set(DYNAMIC)
    for name in DYNAMIC:
        data = load(name).train_dataloader.dataset
        for version in ('2.1', '2.2'):
            if name.endswith(f'ava{version.replace(".", "")}'):
                assert f'v{version}' in data.ann_file
                assert f'v{version}' in data.label_file


@pytest.mark.parametrize('name', DYNAMIC)
def test_a_dynamic_config_differs_from_its_static_twin_in_the_model_alone(name):
    cfg = load(name)
    twin = name.replace('vared2_', 'static_')
    if twin not in FILES:  # its twin is MMAction2's
        assert cfg.load_from.startswith('https://download.openmmlab.com/mmaction/v1.0/detection/')
        return
    static = load(twin)
    folder = static.get('work_dir') or f'work_dirs/{twin}'
    assert cfg.load_from == f'{folder}/epoch_{static.train_cfg.max_epochs}.pth'
    model, stock = cfg.model.to_dict(), static.model.to_dict()
    assert model.pop('neck') == {'type': 'mmaction.SoftModulationGateNeck'}
    assert model['roi_head'].pop('type') == 'VARED2' + stock['roi_head'].pop('type')
    assert 0.6 <= model['roi_head'].pop('loss_budget')['budget'] < 1
    backbone = model['backbone']
    assert isinstance(backbone.pop('dynamic'), dict)
    if backbone['type'] == 'mmaction.VARED2Backbone':
        model['backbone'] = backbone['backbone']
    else:
        backbone['type'] = backbone['type'].replace('VARED2', '')
    model['init_cfg'] = stock['init_cfg'] = None  # the checkpoint holds everything
    assert model == stock
    assert all(cfg[f'{split}_dataloader'] == static[f'{split}_dataloader'] for split in SPLITS)


@pytest.mark.parametrize('name', FILES)
def test_parts_outside_the_model_build(name):
    cfg = load(name)
    assert cfg.custom_imports.imports == ['vared2_mmaction']
    cfg = cfg.copy()
    cfg.load_from = None
    check_config(cfg)
    hooks = [type(HOOKS.build(hook)).__name__ for hook in cfg.get('custom_hooks', [])]
    settle = ['BudgetScheduleHook', 'FixOptionsHook', 'PolicyUsageHook']
    assert hooks == settle * (name in DYNAMIC)
    if name in DYNAMIC and 'moving-boxes' not in name:  # docs/training.md says why that has others
        schedule, last, _ = cfg.custom_hooks
        assert schedule.fall == last.begin == cfg.train_cfg.max_epochs / 4
        assert cfg.train_cfg.val_begin > last.begin
    for split in ('val', 'test'):
        metrics = [type(m).__name__ for m in Evaluator(cfg[f'{split}_evaluator']).metrics]
        assert metrics == ['AVAMetric', *['ComputeMetric'] * (name in DYNAMIC)]


def decode(results, frames):
    """What MMAction2's decoders do, without a video."""
    results['imgs'] = [np.full((48, 64, 3), 7 * t, np.uint8) for t in range(frames)]
    results['original_shape'] = results['img_shape'] = (48, 64)
    for key in ('gt_bboxes', 'proposals'):
        results[key] = results[key] * (64, 48, 64, 48)


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('name', FILES)
def test_pipelines_make_clips_for_the_model(name, split):
    cfg = load(name)
    dataset = cfg[f'{split}_dataloader'].dataset
    steps = [step for step in dataset.pipeline if 'Init' not in step.type]
    sample = next(step for step in steps if step.type == 'SampleAVAFrames')
    assert sample.get('test_mode', False) == (split != 'train')
    results = {
        **{'fps': dataset.get('fps', 30), 'timestamp': 903, 'shot_info': (0, 27000)},
        'timestamp_start': dataset.get('timestamp_start', 900),
        **{'modality': 'RGB', 'img_key': 'video,0903', 'video_id': 'video', 'start_index': 0},
        'gt_bboxes': np.array([[0.2, 0.2, 0.7, 0.8]]),
        'gt_labels': np.ones((1, dataset.get('num_classes', 81)), np.float32),
        'proposals': np.array([[0.2, 0.2, 0.7, 0.8], [0.1, 0.1, 0.5, 0.5]]),
    }
    for step in steps:
        if 'Decode' in step.type:
            decode(results, sample.clip_len)
        else:
            results = Compose([TRANSFORMS.build(step)])(results)
    clip = results['inputs']
    assert clip.shape[:2] == (3, sample.clip_len)
    assert clip.dtype == torch.uint8
    found = results['data_samples']
    height, width = clip.shape[2:]
    assert found.gt_instances.bboxes.shape == (1, 4)
    assert found.proposals.bboxes.shape == (2, 4)
    assert found.proposals.bboxes[:, 2].max() <= width
    assert found.proposals.bboxes[:, 3].max() <= height
    assert found.gt_instances.bboxes.max() > 1  # pixels


def batch(cfg, clips):
    frames = next(s for s in cfg.train_dataloader.dataset.pipeline if 'clip_len' in s).clip_len
    labels = torch.zeros(1, cfg.model.roi_head.bbox_head.num_classes)
    labels[0, 2] = 1
    box = torch.tensor([[4.0, 4.0, 28.0, 20.0]])
    samples = []
    for _ in range(clips):
        sample = ActionDataSample(metainfo={'img_shape': (32, 32), 'img_key': 'v,0001'})
        sample.gt_instances = InstanceData(bboxes=box, labels=labels)
        sample.proposals = InstanceData(bboxes=box + 0.1)
        samples.append(sample)
    inputs = [torch.randint(256, (3, frames, 32, 32), dtype=torch.uint8) for _ in samples]
    return {'inputs': inputs, 'data_samples': samples}


@pytest.mark.parametrize('name', FILES)
def test_model_trains_and_tests_for_a_step(name):
    cfg = Config.fromfile(ROOT / f'{name}.py')
    cfg.model.init_cfg = None
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    sgd = torch.optim.SGD(model.parameters(), lr=0.001)
    sgd.zero_grad = lambda **kwargs: None  # keep the gradients
    # Statistics of a few pixels make gradients of any size.
    log = model.train_step(batch(cfg, clips=2), OptimWrapper(sgd, clip_grad={'max_norm': 1}))
    assert all(torch.isfinite(value) for value in log.values()), log
    assert log['loss_action_cls'] > 0
    assert all(p.grad.any() for p in model.roi_head.parameters())
    model.eval()
    with torch.no_grad():
        (sample,) = model.test_step(batch(cfg, clips=1))
    assert sample.pred_instances.scores.shape == (1, cfg.model.roi_head.bbox_head.num_classes)
    assert sample.pred_instances.scores.isfinite().all()
    layers = dynamic_layers(model)
    assert bool(layers) == (name in DYNAMIC)
    if layers:
        assert log['loss_budget'] > 0
        assert 0 < log['compute_ratio'] <= 1
        assert 0 < sample.compute_ratio <= 1
        assert sample.policy.shape == (1, len(layers), 2)
