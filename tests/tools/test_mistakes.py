# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""All tools tell mistakes in one line; faults of the program keep their traceback.

tests/test_quiet.py looks at all that a process prints."""

import argparse
import subprocess

import pytest
import torch
from mmaction.registry import MODELS
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader, Dataset

from commands.cli import run_tool
from vared2_mmaction.errors import FileError

from ..loading import SCRIPTS, load_tool
from ..networks import write_network

PYTHON_SCRIPTS = [name for name in SCRIPTS if name.endswith('.py')]
SYNTAX = 'model = dict(\n'
# Tool: arguments that are wrong, and what is said of them.
WRONG = {
    'benchmark.py': [
        (['gone.py'], "CONFIG='gone.py': no such file"),
        (['syntax.py'], "CONFIG='syntax.py' cannot be read: "),
        (['syntax.py', '--runs', '0'], '--runs 0: expected at least 1'),
    ],
    'calibrate.py': [
        (['gone.py', 'gone.pth', '--ratios', '0.5'], "CONFIG='gone.py': no such file"),
        (['syntax.py', 'gone.pth', '--ratios', '0.5'], "CONFIG='syntax.py' cannot be read: "),
        (['dynamic.py', 'gone.pth', '--ratios', '0.5'], "CHECKPOINT='gone.pth': no such file"),
        (['dynamic.py', 'gone.pth', '--ratios', '0.5', '2'], '--ratios 2: expected shares'),
        (['dynamic.py', 'gone.pth', '--ratios', '1', '--num-videos', '1'], '--num-videos 1'),
    ],
    'data/build_mini_kinetics.py': [
        (
            ['--train-csv', 'a', '--val-csv', 'b', '--videos', 'c', '--out', 'd'],
            'a: cannot be read',
        ),
    ],
    'data/convert_jhmdb.py': [
        (['--pickle', 'gone.pkl', '--out', 'x'], 'gone.pkl'),
        (['--puppet-mask', 'x', '--out', 'x'], '--splits: expected beside --puppet-mask'),
    ],
    'demo.py': [
        (['v.mp4', 'gone.py', 'gone.pth'], "VIDEO='v.mp4': no such file"),
        (['list.txt', 'gone.py', 'gone.pth'], "CONFIG='gone.py': no such file"),
        (['list.txt', 'syntax.py', 'gone.pth'], "CONFIG='syntax.py' cannot be read: "),
    ],
    'get_flops.py': [
        (['gone.py'], "CONFIG='gone.py': no such file"),
        (['syntax.py'], "CONFIG='syntax.py' cannot be read: "),
        (['static.py', '--num-videos', '0'], '--num-videos 0'),
        (['static.py', '--out', '.'], "--out '.': is a folder"),
        (['static.py', '--out', '/proc/a.json'], "--out '/proc/a.json': cannot be written: "),
    ],
    'gpu_check.py': [(['--clips', '0'], '--clips 0 --runs 10: expected 1 or more')],
    'make_moving_boxes.py': [(['list.txt'], 'OUT')],
    'make_moving_shapes.py': [(['out', '--size', '31'], '--size: expected a multiple of 32')],
    'plot_scaling.py': [
        (['gone.json', '--out', 'a.png'], 'gone.json'),
        (['gone.json', '--out', 'a.jpg'], "--out 'a.jpg': expected a name that ends in .png"),
    ],
    'run_demo.py': [(['--timed-clips', '0'], '--timed-clips 0: expected at least 1')],
    'run_stock.py': [
        (['gone.py'], "TOOL='gone.py': no such file"),
    ],
    'study.py': [
        (['--out', 'out', '--epochs', '1', '1'], '--epochs: expected at least 2 each'),
        (['--report', 'gone'], 'gone'),
    ],
    'test.py': [
        (['gone.py', 'gone.pth'], "CONFIG='gone.py': no such file"),
        (['syntax.py', 'gone.pth'], "CONFIG='syntax.py' cannot be read: "),
        (['static.py', 'gone.pth'], "load_from='gone.pth': no such checkpoint"),
        (['static.py', '~/gone.pth'], "load_from='~/gone.pth': no such checkpoint"),
        (['static.py', 'gone.pth', '--dump', 'folder.pkl'], "--dump 'folder.pkl': is a folder"),
        (['static.py', 'gone.pth', '--dump', '/proc/a.pkl'], 'cannot be written: '),
        (
            ['static.py', 'gone.pth', '--dump', 'a.json'],
            "--dump 'a.json': expected a name that ends in .pkl",
        ),
    ],
    'train.py': [
        (['gone.py'], "CONFIG='gone.py': no such file"),
        (['syntax.py'], "CONFIG='syntax.py' cannot be read: "),
        (['misspelt.py'], 'misspelt.py, line 1: '),
        (['static.py'], 'the config has no train_dataloader'),
        (['static.py', '--cfg-options', 'model.depth.x.y=3', 'model.type.x=3'], '--cfg-options'),
        (['static.py', '--cfg-options', 'nothing'], ''),
        (['static.py', '--auto-scale-lr'], '--auto-scale-lr needs'),
        (['dynamic.py', '--cfg-options', 'model.backbone.dynamic=True'], 'dynamic=True: expected'),
        (
            ['dynamic.py', '--cfg-options', 'model.backbone.dynamic.gate=big'],
            "dynamic.gate='big': expected",
        ),
    ],
    'visualize_policy.py': [
        (['gone.pkl', 'static.py', '--out', 'x'], "DUMP='gone.pkl': no such file"),
        (['list.txt', 'syntax.py', '--out', 'x'], "CONFIG='syntax.py' cannot be read: "),
        (['list.txt', 'static.py', '--out', '/proc'], "--out '/proc': cannot be written: "),
    ],
}
WITHOUT_FILES = {'run_detection.py'}
"""A tool that only runs others, whose mistakes are told by these."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    (tmp_path / 'syntax.py').write_text(SYNTAX)
    (tmp_path / 'misspelt.py').write_text("_base_ = 'rigth.py'\n")
    (tmp_path / 'static.py').write_text(
        "model = dict(type='Recognizer2D', backbone=dict(type='ResNet', depth=18))\n"
        "optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))\n"
        "test_evaluator = dict(type='AccMetric')\n"
    )
    (tmp_path / 'dynamic.py').write_text(
        "model = dict(type='Recognizer2D', neck=dict(type='SoftModulationGateNeck'),\n"
        "    backbone=dict(type='VARED2ResNet', depth=18, num_segments=4, dynamic=dict()),\n"
        "    cls_head=dict(type='VARED2TSNHead', num_classes=2, in_channels=512))\n"
    )
    (tmp_path / 'list.txt').write_text('a.mp4 1\n')
    (tmp_path / 'folder.pkl').mkdir()
    return tmp_path


def test_every_tool_is_tried():
    assert set(PYTHON_SCRIPTS) == set(WRONG) | WITHOUT_FILES


@pytest.mark.parametrize('script', PYTHON_SCRIPTS)
def test_tools_know_traceback_and_refuse_unknown_arguments(script, capsys):
    tool = load_tool(script.removesuffix('.py'))
    with pytest.raises(SystemExit, match='0'):
        tool.main(['--help'])
    assert '--traceback' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='2'):
        tool.main(['--no-such-option'])
    assert 'usage: ' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('script', 'arguments', 'message'),
    [(script, *case) for script, cases in WRONG.items() for case in cases],
)
def test_mistakes_are_one_line(script, arguments, message, folder, capsys):
    tool = load_tool(script.removesuffix('.py'))
    with pytest.raises(SystemExit, match='2'):
        tool.main(arguments)
    told = capsys.readouterr().err.splitlines()
    lines = [line for line in told if ': error: ' in line]
    assert len(lines) == 1
    assert message in lines[0]
    assert not any('Traceback' in line for line in told)
    with pytest.raises((ValueError, OSError)) as caught:
        tool.main(['--traceback', *arguments])
    assert message in str(caught.value)


def parser():
    parser = argparse.ArgumentParser(prog='tool.py')
    parser.add_argument('--number', type=int)
    return parser


def told(error, capsys, *arguments):
    """What a tool tells in which this error is raised."""

    def work(args):
        raise error

    with pytest.raises(SystemExit, match='2'):
        run_tool(parser(), work, arguments)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (ValueError('key=1: expected 2'), 'key=1: expected 2'),
        (ValueError('first\nsecond'), 'first'),
        (FileNotFoundError('x.pth: no such file'), 'x.pth: no such file'),
        (PermissionError(13, 'Permission denied', 'x'), "[Errno 13] Permission denied: 'x'"),
        (ImportError('install mmdet'), 'install mmdet'),
        (FloatingPointError('layer1: nan'), 'FloatingPointError: layer1: nan'),
        (FileError("video 'x' cannot be opened"), "video 'x' cannot be opened"),
        (
            subprocess.CalledProcessError(2, ['python', 'a.py']),
            "['python', 'a.py']' returned non-z",
        ),
    ],
)
def test_what_a_user_can_mend(error, line, capsys):
    text = told(error, capsys)
    assert text.startswith('tool.py: error: ')
    assert line in text
    assert text.count('\n') == 1


@pytest.mark.parametrize(
    'error',
    [
        AttributeError("'int' object has no attribute 'x'"),
        TypeError('not subscriptable'),
        KeyError('x'),
        AssertionError('never'),
        RuntimeError('shapes differ'),
        ZeroDivisionError('division by zero'),
        ValueError(''),
        NotImplementedError('later'),
    ],
)
def test_faults_of_the_program_keep_their_traceback(error):
    def work(args):
        raise error

    with pytest.raises(type(error)) as caught:
        run_tool(parser(), work, [])
    assert caught.value is error


def test_traceback_and_exit_status(capsys):
    def work(args):
        raise ValueError('wrong')

    with pytest.raises(ValueError, match='wrong'):
        run_tool(parser(), work, ['--traceback'])
    run_tool(parser(), lambda args: 0, ['--number', '3'])
    run_tool(parser(), lambda args: None, [])
    with pytest.raises(SystemExit, match='3'):
        run_tool(parser(), lambda args: args.number, ['--number', '3'])
    with pytest.raises(KeyboardInterrupt):
        run_tool(parser(), lambda args: (_ for _ in ()).throw(KeyboardInterrupt), [])


@pytest.mark.parametrize(
    ('config', 'line'),
    [
        ({'type': 'ResNot', 'depth': 18}, 'ResNot is not in the mmaction::model registry'),
        ({'type': 'ResNet', 'dpeth': 18}, "unexpected keyword argument 'dpeth'"),
        ({'type': 'ResNet', 'depth': 19}, 'invalid depth 19 for resnet'),
        ({'depth': 18}, '`cfg` or `default_args` must contain the key "type"'),
        (
            {'type': 'I3DHead', 'num_classes': 2, 'in_channels': 4, 'topk': 'five'},
            None,  # `assert isinstance(...)` says nothing
        ),
    ],
)
def test_what_a_config_builds(config, line, capsys):
    def work(args):
        init_default_scope('mmaction')  # as runners do
        MODELS.build(config)

    if line is None:
        with pytest.raises(AssertionError):
            run_tool(parser(), work, [])
        return
    with pytest.raises(SystemExit, match='2'):
        run_tool(parser(), work, [])
    text = capsys.readouterr().err
    assert line in text
    assert text.count('\n') == 1


class Broken(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        try:
            raise OSError('decoder')
        except OSError as error:
            said = f"video 'broken{index}.mp4' cannot be decoded: damaged\nexpected: another"
            raise FileError(said) from error


def test_what_a_worker_that_loads_data_says(capsys):
    def work(args):
        next(iter(DataLoader(Broken(), num_workers=1)))

    with pytest.raises(SystemExit, match='2'):
        run_tool(parser(), work, [])
    expected = "tool.py: error: video 'broken0.mp4' cannot be decoded: damaged\n"
    assert capsys.readouterr().err == expected


def test_a_checkpoint_of_another_network_is_a_mistake(folder, capsys):
    config, _ = write_network(folder)
    torch.save({'state_dict': torch.nn.Linear(2, 2).state_dict()}, 'other.pth')
    with pytest.raises(SystemExit, match='2'):
        load_tool('get_flops').main([config, 'other.pth'])
    assert 'other.pth' in capsys.readouterr().err
