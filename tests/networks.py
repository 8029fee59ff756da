# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Tiny dynamic recognizers on disk: a config and a checkpoint, with gates that decide something."""

from pathlib import Path

import torch
from mmengine.config import Config

from vared2_mmaction.apis import load_model

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ('left', 'right', 'up')

_PIPELINE = """
test_pipeline = [
    dict(type='DecordInit'),
    SAMPLE,
    dict(type='DecordDecode'),
    dict(type='Resize', scale=(40, 40), keep_ratio=False),
    dict(type='CenterCrop', crop_size=32),
    dict(type='FormatShape', input_format='FORMAT'),
    dict(type='PackActionInputs'),
]
test_dataloader = dict(dataset=dict(type='VideoDataset', pipeline=test_pipeline))
default_scope = 'mmaction'
custom_imports = dict(imports=['vared2_mmaction'])
"""
_PREPROCESSOR = "dict(type='ActionDataPreprocessor', mean=[128.0] * 3, std=[40.0] * 3, "
_MODELS = {
    'Recognizer3D': f"""
_base_ = {str(ROOT / 'configs' / '_base_' / 'models' / 'vared2_r2plus1d.py')!r}
model = dict(
    backbone=dict(base_channels=4, pretrained2d=False, stage_blocks=(1, 1, 1, 1)),
    cls_head=dict(num_classes=3, in_channels=32),
    data_preprocessor={_PREPROCESSOR}format_shape='NCTHW'),
)
""",
    'Recognizer2D': f"""
model = dict(
    type='Recognizer2D',
    backbone=dict(
        type='VARED2ResNet', depth=18, num_segments=8, dynamic=dict(),
        num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,),
    ),
    neck=dict(type='SoftModulationGateNeck'),
    cls_head=dict(type='VARED2TSNHead', num_classes=3, in_channels=128, average_clips='prob'),
    data_preprocessor={_PREPROCESSOR}format_shape='NCHW'),
)
""",
}
_TEST = """
dataset = dict(ann_file='VIDEOS/test.txt', data_prefix=dict(video='VIDEOS'), test_mode=True)
sampler = dict(type='DefaultSampler', shuffle=False)
test_dataloader = dict(batch_size=2, num_workers=0, sampler=sampler, dataset=dataset)
test_cfg = dict(type='TestLoop')
test_evaluator = [dict(type='AccMetric', metric_list=('top_k_accuracy',))]
work_dir = 'work'
experiment_name = 'NAME'
"""
_SAMPLES = {
    'Recognizer3D': "dict(type='SampleFrames', clip_len=8, frame_interval=2, test_mode=True)",
    'Recognizer2D': "dict(type='SampleFrames', clip_len=1, num_clips=8, test_mode=True)",
}


def write_network(folder, kind='Recognizer3D'):
    """Writes config and checkpoint of an untrained network; returns their paths.

    Args:
        folder: Where to.
        kind: 'Recognizer2D' or 'Recognizer3D'.
    """
    pipeline = _PIPELINE.replace('SAMPLE', _SAMPLES[kind])
    pipeline = pipeline.replace('FORMAT', 'NCTHW' if kind == 'Recognizer3D' else 'NCHW')
    config, checkpoint = folder / f'{kind}.py', folder / f'{kind}.pth'
    config.write_text(_MODELS[kind] + pipeline)
    model, _ = load_model(Config.fromfile(config))
    random = torch.Generator().manual_seed(0)
    for key, parameter in model.named_parameters():
        if key.endswith('gate.fc2.bias'):
            torch.nn.init.zeros_(parameter)
        if key.endswith('gate.fc2.weight'):
            torch.nn.init.normal_(parameter, generator=random)
    torch.save({'state_dict': model.state_dict()}, checkpoint)
    return str(config), str(checkpoint)


def change(config, more):
    """Writes a config that inherits from another, with more lines; returns its path."""
    path = Path(config).with_name('changed.py')
    path.write_text(f'_base_ = {config!r}\n{more}\n')
    return str(path)


def write_test_config(path, config, videos, more=''):
    """Writes a config that inherits from another and tests it on the test videos.

    Args:
        path: Where to; also names the experiment.
        config: The other one, of :func:`write_network`.
        videos: Folder of the videos.
        more: More lines.
    """
    text = _TEST.replace('VIDEOS', str(videos)).replace('NAME', path.stem)
    path.write_text(f'_base_ = {config!r}\n{text}{more}')


def make_static(path):
    """Makes the config at a path that of the static network."""
    cfg = Config.fromfile(path)
    for part in ('backbone', 'cls_head'):
        cfg.model[part].type = cfg.model[part].type.removeprefix('VARED2')
    for key in ('dynamic', 'num_segments'):
        cfg.model.backbone.pop(key, None)
    cfg.model.pop('neck')
    cfg.model.cls_head.pop('loss_budget', None)
    cfg.dump(path)
