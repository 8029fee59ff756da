# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The table of multiply-adds: sums, agreement with the static cost and with the decisions."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn

from counting import flops
from counting.clips import Views, random_clip, read_videos, views_of_split
from vared2_mmaction import dynamize, force_policy, static_cost
from vared2_mmaction.apis import load_model
from vared2_mmaction.checkpoints.loading import is_own_parameter
from vared2_mmaction.executors.eager import Eager
from vared2_mmaction.models import SoftModulationGateNeck, dynamic_layers
from vared2_mmaction.models.heads import BudgetHead

from ...loading import load_tool

R2PLUS1D = """
custom_imports = dict(imports=['vared2_mmaction'])
model = dict(
    type='Recognizer3D',
    backbone=dict(
        type='VARED2ResNet2Plus1d', depth=18, base_channels=8, pretrained=None, pretrained2d=False,
        stage_blocks=(1, 1, 1, 1), conv_cfg=dict(type='Conv2plus1d'),
        temporal_strides=(1, 2, 2, 2), dynamic=dict()),
    neck=dict(type='SoftModulationGateNeck'),
    cls_head=dict(type='VARED2I3DHead', num_classes=5, in_channels=64),
    data_preprocessor=dict(
        type='ActionDataPreprocessor', mean=[128.0] * 3, std=[40.0] * 3, format_shape='NCTHW'),
    test_cfg=dict(max_testing_views=2))
load_from = 'work_dirs/not/trained/yet.pth'
test_dataloader = dict(dataset=dict(
    type='VideoDataset', ann_file='LIST', data_prefix=dict(video='VIDEOS'), test_mode=True,
    pipeline=[
        dict(type='DecordInit', num_threads=1),
        dict(type='SampleFrames', clip_len=4, frame_interval=1, num_clips=1, test_mode=True),
        dict(type='DecordDecode'),
        dict(type='ThreeCrop', crop_size=40),
        dict(type='FormatShape', input_format='NCTHW'),
        dict(type='PackActionInputs')]))
"""
TSN = """
custom_imports = dict(imports=['vared2_mmaction'])
model = dict(
    type='Recognizer2D',
    backbone=dict(type='ResNet', depth=18, pretrained=None),
    cls_head=dict(type='TSNHead', num_classes=5, in_channels=512),
    data_preprocessor=dict(
        type='ActionDataPreprocessor', mean=[128.0] * 3, std=[40.0] * 3, format_shape='NCHW'))
test_dataloader = dict(dataset=dict(
    type='VideoDataset', ann_file='LIST', data_prefix=dict(video='VIDEOS'), test_mode=True,
    pipeline=[
        dict(type='DecordInit', num_threads=1),
        dict(type='SampleFrames', clip_len=1, frame_interval=1, num_clips=4, test_mode=True),
        dict(type='DecordDecode'),
        dict(type='CenterCrop', crop_size=32),
        dict(type='FormatShape', input_format='NCHW'),
        dict(type='PackActionInputs')]))
"""
VARED2_TSN = {
    'model.backbone': {
        **{'_delete_': True, 'type': 'VARED2ResNet', 'depth': 18, 'pretrained': None},
        'num_segments': 4,
    },
    'model.neck': {'type': 'SoftModulationGateNeck'},
    'model.cls_head.type': 'VARED2TSNHead',
}
SIDE_BY_SIDE = {'pretrained': None, 'base_channels': 8, 'depth': 50, 'conv1_stride_t': 1}
SIDE_BY_SIDE['stage_blocks'] = (1, 1, 1, 1)
SLOWFAST = {
    'model.backbone': {
        **{'_delete_': True, 'type': 'ResNet3dSlowFast', 'pretrained': None, 'channel_ratio': 4},
        **{'resample_rate': 4, 'speed_ratio': 4},
        'slow_pathway': {'type': 'resnet3d', 'lateral': True, 'fusion_kernel': 5, **SIDE_BY_SIDE},
        'fast_pathway': {'type': 'resnet3d', 'lateral': False, **SIDE_BY_SIDE, 'base_channels': 2},
    },
    'model.neck': None,
    'model.cls_head': {
        **{'_delete_': True, 'type': 'SlowFastHead', 'num_classes': 5},
        'in_channels': 32 * (8 + 2),
    },
}
X3D = {
    'model.backbone': {
        **{'_delete_': True, 'type': 'X3D', 'gamma_w': 1, 'gamma_b': 2.25, 'gamma_d': 0.4},
    },
    'model.neck': None,
    'model.cls_head': {'_delete_': True, 'type': 'X3DHead', 'num_classes': 5, 'in_channels': 432},
}
RESIDUAL = ['stem', 'layer1', 'layer2', 'layer3', 'layer4']


def config(text, changes=None):
    cfg = Config.fromstring(text, '.py')
    cfg.merge_from_dict(changes or {})
    cfg.load_from = None
    return cfg


def build(text, changes=None):
    return load_model(config(text, changes))[0]


def randomise(model):
    """Give every clip and layer some answer of its own."""
    for layer in dynamic_layers(model).values():
        torch.nn.init.normal_(layer.gate.fc2.weight, std=2)
        torch.nn.init.normal_(layer.gate.fc2.bias, std=1)


def measure(model, shape):
    views = Views(frames=4, clips=1, crops=1, size=None)
    return flops.measure(model, [[random_clip(model, shape, views)]])


def check_sums(table):
    for i in range(1, len(table.total)):
        found = sum(row[i] for row in table.stages)
        if table.videos == 1:
            assert table.total[i] == found
        elif flops.Row._fields[i] == 'expected_min':
            assert table.total[i] >= found  # stages may be cheapest for different videos
        elif flops.Row._fields[i] == 'expected_max':
            assert table.total[i] <= found
        else:
            assert table.total[i] == pytest.approx(found, rel=1e-12)
    for row in (*table.stages, table.total):
        assert row.expected == row.executed <= row.static


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    """Three videos of 8 frames, 40 x 40, that move ever faster, and their list."""
    folder = tmp_path_factory.mktemp('videos')
    image = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    for i in range(3):
        code = cv2.VideoWriter_fourcc(*'mp4v')
        writer = cv2.VideoWriter(str(folder / f'{i}.mp4'), code, 8, (40, 40))
        for t in range(8):
            writer.write(np.roll(image, 3 * i * t, axis=1))
        writer.release()
    (folder / 'list.txt').write_text(''.join(f'{i}.mp4 {i}\n' for i in range(3)))
    return folder


@pytest.fixture(scope='module')
def tool():
    return load_tool('get_flops')


@pytest.fixture
def write_config(tmp_path, videos):
    def write(text):
        path = tmp_path / 'config.py'
        text = text.replace('LIST', str(videos / 'list.txt')).replace('VIDEOS', str(videos))
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize(
    ('text', 'changes', 'shape', 'input_shape'),
    [
        (R2PLUS1D, {}, (3, 8, 32, 32), (1, 1, 3, 8, 32, 32)),
        (TSN, {}, (3, 32, 32), (1, 4, 3, 32, 32)),
        (TSN, VARED2_TSN, (3, 32, 32), (1, 4, 3, 32, 32)),
    ],
    ids=['dynamic 3-D', 'stock 2-D', 'dynamic 2-D'],
)
def test_rows_sum_to_the_static_cost(text, changes, shape, input_shape):
    model = build(text, changes)
    table = measure(model, shape)
    check_sums(table)
    assert table.total.static == static_cost(model, input_shape)
    assert [row.stage for row in table.stages] == [*RESIDUAL, 'head']
    assert table.stages[-1].static == 5 * model.cls_head.in_channels
    assert table.total.parameters == sum(p.numel() for p in model.parameters())
    assert table.compute_ratio == 1  # all options are open at the start
    if dynamic_layers(model):
        assert table.total.overhead > 0 < table.total.own_parameters
    else:
        assert table.total.overhead == 0 == table.total.own_parameters


@pytest.mark.parametrize(
    ('text', 'changes', 'shape'),
    [
        (R2PLUS1D, {}, (3, 8, 32, 32)),
        (TSN, VARED2_TSN, (3, 32, 32)),
    ],
    ids=['3-D', '2-D'],
)
def test_expected_is_executed(text, changes, shape):
    model = build(text, changes)
    randomise(model)
    table = measure(model, shape)
    check_sums(table)
    assert 0 < table.compute_ratio < 1
    stages = {row.stage: row for row in table.stages}
    assert stages['stem'].expected == stages['stem'].static
    assert any(stages[name].expected < stages[name].static for name in RESIDUAL[1:])
    previous = 1.0
    for option in (0, 1, 2):
        with force_policy(model, option, option):
            forced = measure(model, shape)
        check_sums(forced)
        assert (forced.total.expected == forced.total.static) == (option == 0)
        assert option == 0 or forced.compute_ratio < previous
        previous = forced.compute_ratio


def test_compute_ratio_is_that_of_the_head():
    model = build(R2PLUS1D)
    randomise(model)
    clip = random_clip(model, (3, 8, 32, 32), None)
    table = flops.measure(model, [[clip]])
    with torch.no_grad():
        features, _ = model.extract_feat(clip, test_mode=True)
    assert table.compute_ratio == features.ratio.item()


def test_pathways_and_what_follows_the_stages():
    model = build(R2PLUS1D, SLOWFAST)
    table = measure(model, (3, 32, 32, 32))
    pathways = [f'{path}_path.{stage}' for path in ('slow', 'fast') for stage in RESIDUAL]
    assert {row.stage for row in table.stages} == {*pathways, 'head'}
    assert table.total.static == static_cost(model, (1, 1, 3, 32, 32, 32))
    check_sums(table)
    names = flops.stage_of_modules(model)
    assert names['backbone.slow_path.layer2_lateral.conv'] == 'slow_path.layer2'
    assert names['backbone.slow_path.conv1_lateral.conv'] == 'slow_path.stem'
    assert all(row.static > 0 for row in table.stages)
    dynamize(model.backbone)
    model.neck = SoftModulationGateNeck()
    head = type(model.cls_head)
    model.cls_head.__class__ = type(f'VARED2{head.__name__}', (BudgetHead, head), {})
    randomise(model)
    dynamic = measure(model, (3, 32, 32, 32))
    check_sums(dynamic)
    assert dynamic.total.static == table.total.static
    assert [row.stage for row in dynamic.stages] == [row.stage for row in table.stages]
    assert dynamic.compute_ratio < 1
    table = measure(build(R2PLUS1D, X3D), (3, 4, 32, 32))
    assert [row.stage for row in table.stages] == [*RESIDUAL, 'conv5', 'head']


def test_stages_of_a_backbone_without_residual_stages():
    model = nn.Module()
    model.backbone = nn.ModuleDict({'conv1a': nn.Conv2d(1, 1, 1), 'fc6': nn.Linear(1, 1)})
    stages = flops.stage_of_modules(model)
    assert stages['backbone.conv1a'] == 'conv1a'
    assert stages['backbone.fc6'] == 'fc6'


def test_a_layer_that_executes_more_than_it_decided_is_named(monkeypatch):
    model = build(R2PLUS1D)
    modulate = Eager._modulate

    def wasteful(self, clips, *args):
        if self.conv.layer_name == 'layer2.0.conv1.conv.conv_t':
            self.conv.convolve(clips)
        return modulate(self, clips, *args)

    layers = [name for name in dynamic_layers(model) if '.layer2.0.' in name]
    assert 'backbone.layer2.0.conv1.conv.conv_t' in layers
    monkeypatch.setattr(Eager, '_modulate', wasteful)
    with pytest.raises(flops.CostMismatchError, match=r'layer2\.0\.conv1\.conv\.conv_t: expected'):
        measure(model, (3, 8, 32, 32))


def test_views_of_stock_pipelines():
    model = build(TSN, VARED2_TSN)
    cfg = config(TSN, {'test_dataloader.dataset.pipeline.1.twice_sample': True})
    assert views_of_split(cfg, model, 'test') == Views(4, 2, 1, (32, 32))
    dense = {'test_dataloader.dataset.pipeline.1.type': 'DenseSampleFrames'}
    assert views_of_split(config(TSN, dense), model, 'test').clips == 10
    assert views_of_split(cfg, model, 'val') is None
    model = build(R2PLUS1D)
    cfg = config(R2PLUS1D, {'test_dataloader.dataset.pipeline.3.crop_size': (48, 32)})
    assert views_of_split(cfg, model, 'test') == Views(4, 1, 3, (32, 48))
    dataset = cfg.test_dataloader.dataset
    dataset.pipeline[:3] = [{'type': 'DecodeOnce', 'transforms': dataset.pipeline[:3]}]
    cfg.test_dataloader.dataset = {'type': 'ConcatDataset', 'datasets': [dataset]}
    assert views_of_split(cfg, model, 'test') == Views(4, 1, 3, (32, 48))


@pytest.mark.parametrize(('text', 'clips'), [(R2PLUS1D, 3), (TSN, 2)])
def test_videos_are_decoded_and_counted(text, clips, write_config):
    twice = {'test_dataloader.dataset.pipeline.1.twice_sample': text == TSN}
    cfg = config(Path(write_config(text)).read_text(), twice)
    model = build(text)
    found = [list(video) for video in read_videos(cfg, model, 'test', 5)]
    assert [len(video) for video in found] == [clips] * 3
    randomise(model)
    table = flops.measure(model, found)
    check_sums(table)
    assert table.videos == 3
    first = flops.measure(model, found[:1]).total.expected
    assert table.total.expected_min <= first <= table.total.expected_max
    assert table.total.expected_min <= table.total.expected <= table.total.expected_max
    assert (table.total.expected_min < table.total.expected_max) == bool(dynamic_layers(model))
    assert len(list(read_videos(cfg, model, 'test', 2))) == 2


def test_json_and_text_say_the_same(tool, write_config, tmp_path, capsys):
    out = tmp_path / 'flops.json'
    tool.main([write_config(R2PLUS1D), '--data', '--num-videos', '2', '--out', str(out)])
    result = json.loads(out.read_text())
    assert result['videos'] == 2
    assert result['views'] == [1, 3]
    assert result['clip_sizes'] == [[4, 40, 40]]
    assert sum(row['executed'] for row in result['stages']) == result['total']['executed']
    printed = ' '.join(capsys.readouterr().out.split())
    assert f'{result["total"]["static"] / 1e9:.6f}' in printed
    assert '2 videos, clips of 4 x 40 x 40; a test video takes 1 x 3 views' in printed
    assert f'compute ratio {result["compute_ratio"]:.4f}' in printed


def test_checkpoints(tool, write_config, tmp_path):
    path = str(tmp_path / 'some.pth')
    model = build(R2PLUS1D)
    torch.save({'state_dict': model.state_dict()}, path)
    others = ('num_batches_tracked', '_options.used')
    number = sum(not key.endswith(others) for key in model.state_dict())
    expected = f'checkpoint {path}, {number} tensors'
    assert load_model(config(R2PLUS1D), path)[1] == expected
    static = {k: v for k, v in model.state_dict().items() if not is_own_parameter(k)}
    torch.save(static, path)
    assert 'lacks gates' in load_model(config(R2PLUS1D), path)[1]
    for text in (R2PLUS1D, TSN):
        torch.save({'state_dict': {'conv.weight': torch.zeros(1)}}, path)
        with pytest.raises(ValueError, match=r'CHECKPOINT=.*expected backbone\.conv1'):
            load_model(config(text), path)
    torch.save({**static, 'cls_head.fc_cls.weight': torch.zeros(7, 64)}, path)
    with pytest.raises(ValueError, match=r'fc_cls\.weight of shape \(5, 64\), found \(7, 64\)'):
        load_model(config(R2PLUS1D), path)
    Path(path).write_text('no checkpoint')
    with pytest.raises(ValueError, match='cannot be loaded'):
        load_model(config(R2PLUS1D), path)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--shape', '3', '32', '32'], '--shape 3 32 32: expected C T H W for a Recognizer3D'),
        (['--shape', '3', '0', '32', '32'], '--shape 3 0 32 32: expected C T H W'),
        (['--shape', '4', '8', '32', '32'], '(1, 1, 4, 8, 32, 32), of --shape or the pipeline'),
        (['--shape', 'big'], '--shape: invalid int value'),
        (['--shape', '3', '--data'], '--data: not allowed with argument --shape'),
        (['--split', 'val'], '--shape C T H W is needed'),
        (['--split', 'val', '--data'], 'the config has no val_dataloader'),
        (['--data', '--num-videos', '0'], '--num-videos 0: expected at least 1'),
        (['--out', 'no/such/folder/a.json'], "--out 'no/such/folder/a.json'"),
        (['missing.pth'], "CHECKPOINT='missing.pth': no such file"),
        (['--cfg-options', 'model.neck=None'], 'model.neck: backbone VARED2ResNet2Plus1d'),
        (
            ['--data', '--cfg-options', 'test_dataloader.dataset.ann_file=none.txt'],
            "test_dataloader.dataset.ann_file='none.txt': no such",
        ),
    ],
)
def test_errors_name_the_argument(tool, write_config, arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        tool.main([write_config(R2PLUS1D), *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_config_is_named(tool, capsys):
    with pytest.raises(SystemExit):
        tool.main(['missing.py'])
    assert "CONFIG='missing.py': no such file" in capsys.readouterr().err


def test_a_clip_of_the_wrong_number_of_segments(write_config):
    cfg = config(
        Path(write_config(TSN)).read_text(), {'test_dataloader.dataset.pipeline.1.num_clips': 3}
    )
    model = build(TSN, {**VARED2_TSN})
    with pytest.raises(ValueError, match=r'3 frames a video; expected clips of 4, the num_segm'):
        next(read_videos(cfg, model, 'test', 1))


def test_without_videos_a_clip_is_that_of_the_pipeline(tool, write_config, capsys):
    tool.main([write_config(TSN)])
    printed = ' '.join(capsys.readouterr().out.split())
    assert '1 clip of 4 x 32 x 32; a test video takes 1 x 1 views' in printed
