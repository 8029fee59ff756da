# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Every config file: what it says, and that it runs."""

import ast
import copy
import functools
import re
from pathlib import Path

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

from vared2_mmaction.models import dynamic_layers

ROOT = Path(__file__).resolve().parents[2] / 'configs'
PATHS = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.rglob('*.py'))}
# Those of detection need mmdet: tests/detection.
FILES = [name for name in PATHS if not name.startswith(('_base_', 'detection/'))]
DYNAMIC = [name for name in FILES if Path(name).stem.startswith(('vared2', 'template'))]
FROM_OUR_STATIC = [name for name in DYNAMIC if '/' in name]  # the others start from MMAction2's
SPLITS = ('train', 'val', 'test')
VIEWS = 2
RECIPES = [*DYNAMIC, *(n for n in PATHS if n.startswith('detection/vared2'))]
SETTLE = ('FixOptionsHook', 'FreezeGatesHook')


def twin_in_model(name):
    """The recipe of 8 frames of Kinetics-400 that has the same network; others are their own."""
    return re.sub(r'^\w+/(\w+-\d+)_\d+f_[a-z0-9]+\.py$', r'kinetics400/\1_8f_k400.py', name)


NETWORKS = [name for name in FILES if twin_in_model(name) == name]


@functools.cache
def load(name):
    register_all_modules()
    return Config.fromfile(PATHS[name])


def pipeline(cfg, split):
    return cfg[f'{split}_dataloader'].dataset.pipeline


def frames(cfg, split):
    steps = [inner for step in pipeline(cfg, split) for inner in step.get('transforms', [step])]
    (step,) = [step for step in steps if step.type == 'SampleFrames']
    return step


def data(cfg, split):
    """What is read; how many videos make a batch belongs to the schedule."""
    loader = dict(cfg[f'{split}_dataloader'])
    loader.pop('batch_size')
    return loader


def work_dir(name):
    """Where tools/train.py writes when no folder is given."""
    return load(name).get('work_dir') or f'work_dirs/{Path(name).stem}'


def static_twin(name):
    """The file that a dynamic config's checkpoint comes from."""
    stem = Path(load(name).load_from).parent.name
    return str(Path(name).with_name(f'{stem}.py'))


@pytest.mark.fast
def test_there_are_recipes_for_every_data_set():
    folders = {Path(name).parent.name for name in FILES}
    assert folders >= {'', 'demo', 'study', 'kinetics400', 'mini_kinetics200', 'moments_in_time'}
    assert {'vared2_tsn.py', 'vared2_i3d.py', 'vared2_r2plus1d.py', 'vared2_x3d.py'} <= set(FILES)


def test_every_config_has_a_work_folder_of_its_own():
    folders = [work_dir(name) for name in FILES]
    assert sorted(set(folders)) == sorted(folders)


@pytest.mark.fast
@pytest.mark.parametrize('name', PATHS)
def test_a_config_fits_on_a_screen(name):
    assert len(PATHS[name].read_text().splitlines()) <= 60


@pytest.mark.parametrize('name', FILES)
def test_parts_outside_the_model_build(name):
    cfg = load(name)
    assert 'vared2_mmaction' in cfg.custom_imports.imports
    hooks = [HOOKS.build(hook) for hook in cfg.get('custom_hooks', [])]
    metrics = [Evaluator(cfg[f'{split}_evaluator']).metrics for split in ('val', 'test')]
    if name in DYNAMIC:
        last = 'FreezeGatesHook' if name.startswith('study') else 'FixOptionsHook'
        named = {type(hook).__name__ for hook in hooks}
        assert named == {'BudgetScheduleHook', last, 'PolicyUsageHook'}
        for split in metrics:
            assert {type(metric).__name__ for metric in split} >= {'AccMetric', 'ComputeMetric'}


@pytest.mark.fast
@pytest.mark.parametrize('name', DYNAMIC)
def test_recipes_share_their_settings_but_those_that_say_why(name):
    """docs/training.md says why others have others."""
    cfg = load(name)
    epochs, (schedule, last, _) = cfg.train_cfg.max_epochs, cfg.custom_hooks
    assert schedule.fall == last.begin == epochs / 4
    if Path(name).parent.name in ('demo', 'study'):
        return
    assert cfg.model.cls_head.loss_budget.budget == 0.6
    assert cfg.param_scheduler[-1].T_max == epochs
    with_adam = cfg.optim_wrapper.optimizer.type == 'AdamW'
    assert ('loss_weight' in cfg.model.cls_head.loss_budget) == with_adam
    assert ('paramwise_cfg' in cfg.optim_wrapper) == with_adam


@pytest.mark.parametrize('name', FILES)
def test_splits_sample_the_same_frames(name):
    train = frames(load(name), 'train')
    for split in ('val', 'test'):
        step = frames(load(name), split)
        assert step.test_mode
        for key in ('clip_len', 'frame_interval', 'target_fps'):
            assert step.get(key) == train.get(key), (split, key)
    labelled = [part for part in Path(name).stem.split('_') if part in ('8f', '16f', '32f')]
    if labelled:  # a clip spans 64 frames, however many of them it holds
        assert train.clip_len == int(labelled[0][:-1])
        assert train.clip_len * train.frame_interval == 64


@pytest.mark.parametrize('name', FROM_OUR_STATIC)
def test_a_dynamic_config_differs_from_its_static_twin_in_the_model_alone(name):
    cfg, twin = load(name), static_twin(name)
    stem = Path(name).stem.replace('vared2_', 'static_')
    assert twin in FILES
    assert stem.startswith(Path(twin).stem)
    static = load(twin)
    assert cfg.load_from == f'{work_dir(twin)}/epoch_{static.train_cfg.max_epochs}.pth'
    model, stock = cfg.model.to_dict(), static.model.to_dict()
    assert model.pop('neck') == {'type': 'SoftModulationGateNeck'}
    for part in ('backbone', 'cls_head'):
        assert model[part]['type'] == 'VARED2' + stock[part].pop('type')
        for key in ('type', 'dynamic', 'loss_budget'):
            model[part].pop(key, None)
    model['backbone']['pretrained'] = stock['backbone']['pretrained'] = None
    assert model == stock
    assert all(data(cfg, split) == data(static, split) for split in SPLITS)


@functools.cache
def run_pipeline(steps, filename):
    video = {'filename': filename, 'label': 1, 'start_index': 0, 'modality': 'RGB'}
    packed = Compose([TRANSFORMS.build(step) for step in ast.literal_eval(steps)])(video)
    return tuple(packed['inputs'].shape), packed['inputs'].dtype, packed['data_samples'].gt_label


@pytest.mark.parametrize('name', FILES)
def test_pipelines_read_a_video_shorter_than_a_clip(name, videos):
    cfg = load(name)
    for split in SPLITS:
        steps = repr([step.to_dict() for step in pipeline(cfg, split)])
        shape, dtype, label = run_pipeline(steps, str(videos / 'test0.mp4'))
        step = frames(cfg, split)
        if cfg.model.type == 'Recognizer2D':
            assert shape[0] % (step.clip_len * step.num_clips) == 0
            assert len(shape) == 4
        else:
            assert shape[0] % step.num_clips == 0
            assert shape[2] == step.clip_len
        assert shape[1] == 3
        assert dtype == torch.uint8
        assert label.tolist() == [1]


def batch(cfg, videos, views):
    step, size = frames(cfg, 'train'), 32
    length = step.clip_len * step.get('num_clips', 1)
    shape = (views, 3, length, size, size)
    if cfg.model.type == 'Recognizer2D':
        shape = (views * length, 3, size, size)
    return {
        'inputs': [torch.randint(256, shape, dtype=torch.uint8) for _ in range(videos)],
        'data_samples': [ActionDataSample().set_gt_label(i) for i in range(videos)],
    }


@pytest.mark.parametrize('name', sorted(set(FILES) - set(NETWORKS)))
def test_data_sets_and_lengths_of_clips_change_the_number_of_classes_alone(name):
    models = [load(each).model.to_dict() for each in (name, twin_in_model(name))]
    for model in models:
        assert model['cls_head'].pop('num_classes') > 100
    assert models[0] == models[1]


@pytest.mark.parametrize('name', NETWORKS)
def test_model_trains_and_tests_for_a_step(name):
    cfg = copy.deepcopy(load(name))
    cfg.model.backbone.pretrained = None
    if 'I3DHead' in cfg.model.cls_head.type and 'base_channels' not in cfg.model.backbone:
        # All layers, of a quarter of the channels: their weights are what takes the time.
        cfg.model.backbone.base_channels = 16
        cfg.model.cls_head.in_channels //= 4
    if name in DYNAMIC:  # an untrained network classifies nothing correctly
        cfg.merge_from_dict({'model.cls_head.loss_budget.correct_only': False})
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    # Statistics of a few pixels make gradients of any size.
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer = OptimWrapper(sgd, clip_grad={'max_norm': 1})
    sgd.zero_grad = lambda **kwargs: None  # keep the gradients

    log = model.train_step(batch(cfg, videos=2, views=1), optimizer)
    assert all(torch.isfinite(value) for value in log.values()), log
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad.any() for p in model.cls_head.parameters())
    model.eval()
    with torch.no_grad():
        (sample,) = model.test_step(batch(cfg, videos=1, views=VIEWS))
    assert sample.pred_score.shape == (cfg.model.cls_head.num_classes,)
    assert sample.pred_score.isfinite().all()

    layers = dynamic_layers(model)
    assert bool(layers) == (name in DYNAMIC)
    if layers:
        assert log['loss_budget'] >= 0
        assert 0 < log['compute_ratio'] <= 1
        assert 0 < sample.compute_ratio <= 1
        assert sample.policy.shape == (VIEWS, len(layers), 2)
        moved = {k: layer.gate.fc1.weight.grad.any() for k, layer in layers.items()}
        assert any(moved.values())
        # A short clip leaves late layers nothing to choose in a network without channel options.
        assert all(moved[k] for k, layer in layers.items() if len(layer.channel_options.kept) > 1)


@pytest.mark.parametrize('name', RECIPES)
def test_a_best_checkpoint_is_of_a_network_that_has_met_its_budget(name):
    cfg = load(name)
    loop, settled = cfg.train_cfg, [h.begin for h in cfg.custom_hooks if h.type in SETTLE]
    assert loop.val_begin <= loop.max_epochs
    if cfg.default_hooks.checkpoint.get('save_best') and settled:
        first = -(-loop.val_begin // loop.val_interval) * loop.val_interval
        assert min(first, loop.max_epochs) > max(settled)
