# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""MMAction2's tools, started with this package imported before, on dynamic networks."""

import logging
import os
import re
import subprocess
import sys

import mmengine
import pytest
import torch
from mmaction.structures import ActionDataSample
from mmaction.utils import GradCAM
from mmengine.config import Config
from run_stock import STOCK, main

from vared2_mmaction.apis import load_model
from vared2_mmaction.models import force_policy, to_static

from ..loading import TOOLS
from ..networks import change, make_static, write_network, write_test_config
from ..videos import SPLITS

KINDS = ('Recognizer3D', 'Recognizer2D')
NAMES = [f'test{i}.mp4' for i in range(len(SPLITS['test']))]
HOOKS = """
custom_hooks = [
    dict(type='BudgetScheduleHook', begin=2),
    dict(type='FreezeGatesHook', begin=3),
    dict(type='PolicyUsageHook'),
]
"""
ONE_STAGE = """
strides = dict(spatial_strides=(2,), temporal_strides=(2,), dilations=(1,))
stages = dict(num_stages=1, stage_blocks=(1,), inflate=(1,), out_indices=(0,))
model = dict(backbone=dict(**strides, **stages), cls_head=dict(in_channels=4))
"""


@pytest.fixture(scope='module')
def project(tmp_path_factory, videos):
    """For each kind configs and checkpoints: dynamic, the same at its full policy, and static."""
    torch.manual_seed(1)  # whatever ran before; activations are not all zero
    folder = tmp_path_factory.mktemp('stock_tools')
    found = {}
    for kind in KINDS:
        config, checkpoint = write_network(folder, kind)
        files = {}
        for name in ('dynamic', 'full', 'static'):
            path = folder / f'{name}_{kind}.py'
            write_test_config(path, config, videos, HOOKS if name != 'static' else '')
            files[name] = [str(path), checkpoint]
        files['full'][1] = str(folder / f'full_{kind}.pth')
        weights = torch.load(checkpoint, weights_only=True)['state_dict']
        for key, value in weights.items():
            if key.endswith('gate.fc2.weight'):
                value.zero_()
            if key.endswith('gate.fc2.bias'):  # the dearest option of each dimension alone
                value.fill_(-5.0)
                value[0] = value[len(value) // 2] = 5.0
        torch.save({'state_dict': weights}, files['full'][1])
        make_static(files['static'][0])
        found[kind] = files
    return found


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Runs a tool of MMAction2 in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setattr(logging, 'shutdown', lambda: None)  # of this process, one of them would
    monkeypatch.setattr(sys, 'argv', ['-m'])
    monkeypatch.setattr(sys, 'path', ['', *sys.path])
    return lambda *arguments: main([str(argument) for argument in arguments])


@pytest.mark.parametrize('kind', KINDS)
def test_features_at_the_full_policy_are_those_of_stock(kind, project, tool, tmp_path):
    for name in ('dynamic', 'full', 'static'):
        tool('tools/misc/clip_feature_extraction.py', *project[kind][name], tmp_path / name)
    for video in NAMES:
        dynamic, full, static = (
            mmengine.load(tmp_path / name / f'{video}.pkl')
            for name in ('dynamic', 'full', 'static')
        )
        assert static.shape == ({'Recognizer3D': 32, 'Recognizer2D': 128}[kind],)
        torch.testing.assert_close(full, static, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(dynamic, static, rtol=1e-2)


@pytest.mark.parametrize('kind', KINDS)
def test_confusion_matrix_and_accuracy(kind, project, tool, capsys):
    config, checkpoint = project[kind]['dynamic']
    tool('tools/test.py', config, checkpoint, '--dump', 'dump.pkl')
    for out, result in (('a.pkl', checkpoint), ('b.pkl', 'dump.pkl')):
        tool('tools/analysis_tools/confusion_matrix.py', config, result, '--out', out)
    matrix = mmengine.load('a.pkl')
    assert torch.equal(matrix, mmengine.load('b.pkl'))
    assert matrix.sum() == len(NAMES)
    capsys.readouterr()
    tool('tools/analysis_tools/report_accuracy.py', '--preds', 'dump.pkl', 'dump.pkl')
    assert f'Top 1 Accuracy: {matrix.trace() / len(NAMES):.4f}' in capsys.readouterr().out
    tool('tools/analysis_tools/eval_metric.py', config, 'dump.pkl')
    (accuracy,) = re.findall(r"'acc/top1': [a-z0-9.]*\(?([0-9.]+)", capsys.readouterr().out)
    assert float(accuracy) == pytest.approx(matrix.trace().item() / len(NAMES))


def test_flops_of_a_dynamic_network_are_those_of_stock_and_its_own_parts(project, tool, capsys):
    """MMAction2 1.2.0: fails for any Recognizer2D with a neck."""
    counted = {}
    for name in ('dynamic', 'static'):
        config = change(project['Recognizer3D'][name][0], ONE_STAGE)
        tool('tools/analysis_tools/get_flops.py', config, '--shape', '1', '3', '8', '32', '32')
        (found,) = re.findall(r'Flops: ([\d.]+)M', capsys.readouterr().out)
        counted[name] = float(found)
    # All options are mixed: the whole convolution is computed.
    assert counted['static'] <= counted['dynamic'] < 1.2 * counted['static']


@pytest.mark.parametrize(
    ('kind', 'layer'),
    [
        ('Recognizer3D', 'backbone/conv1'),
        ('Recognizer3D', 'backbone/layer2/0/conv2/conv/conv_s'),  # dynamic
        ('Recognizer2D', 'backbone/layer2/1/conv2/conv'),
    ],
)
def test_class_activations_at_the_full_policy_are_those_of_stock(kind, layer, project):
    config, checkpoint = project[kind]['dynamic']
    model, _ = load_model(Config.fromfile(config), checkpoint)
    shape = (1, 3, 8, 32, 32) if kind == 'Recognizer3D' else (8, 3, 32, 32)
    data = {
        'inputs': [torch.randint(255, shape, dtype=torch.uint8) for _ in range(2)],
        'data_samples': [ActionDataSample().set_gt_label(1) for _ in range(2)],
    }
    with force_policy(model, 0, 0):
        found, scores = GradCAM(model, layer)._calculate_localization_map(data, use_labels=True)
    static = GradCAM(to_static(model), layer)
    expected, stock_scores = static._calculate_localization_map(data, use_labels=True)
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(scores, stock_scores, rtol=1e-4, atol=1e-5)


def test_vis_cam(project, tool, videos):
    config, checkpoint = project['Recognizer3D']['dynamic']
    layer = ['--device', 'cpu', '--target-layer-name', 'backbone/layer4/0/relu']
    tool('tools/visualizations/vis_cam.py', config, checkpoint, videos / 'test0.mp4', *layer)


def test_a_tool_that_imports_mmaction_first_starts(tmp_path):
    """In a process of its own, where nothing is mended yet."""
    env = {**os.environ, 'PYTHONPATH': str(TOOLS.parent), 'PYTHONWARNINGS': 'ignore'}
    stock = 'tools/visualizations/vis_cam.py'
    command = [sys.executable, str(TOOLS / 'run_stock.py'), stock, '-h']
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'usage: vis_cam.py' in done.stdout


def test_any_script_is_run_as_if_by_itself(tmp_path, tool, capsys):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'beside.py').write_text('value = 7\n')
    (tmp_path / 'folder' / 'script.py').write_text(
        'import sys\nfrom beside import value\nprint(__name__, sys.argv[1:], value)\n'
    )
    tool('folder/script.py', 'a', '--tool', 'b', '-h')
    assert capsys.readouterr().out == "__main__ ['a', '--tool', 'b', '-h'] 7\n"


@pytest.mark.parametrize('name', ['nope.py', 'tools/misc/nope.py', 'tools/misc'])
def test_a_tool_that_is_not_there_is_named(name, tool, capsys):
    with pytest.raises(SystemExit, match='2'):
        tool(name)
    (line,) = capsys.readouterr().err.splitlines()
    assert f'TOOL={name!r}: no such file' in line
    assert {'tools/misc': 'tools/test.py'}.get(
        name, 'tools/misc/clip_feature_extraction.py'
    ) in line
    assert (STOCK / 'tools' / 'misc' / 'clip_feature_extraction.py').is_file()
