# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Our command lines against those of the installed MMAction2."""

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import mmaction
import pytest
from mmengine.config import Config
from torch import distributed

from commands import cli

from ...loading import TOOLS, load_tool

STOCK_TOOLS = Path(mmaction.__file__).parent / '.mim' / 'tools'
TRAIN, TEST = load_tool('train'), load_tool('test')
PARSERS = {'train': TRAIN.build_parser, 'test': TEST.stock_parser}
MERGES = {'train': TRAIN.merge_args, 'test': TEST.merge_args}
CONFIG = """
model = dict(type='Recognizer3D')
default_hooks = dict(visualization=dict(type='VisualizationHook'))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
auto_scale_lr = dict(enable=False, base_batch_size=8)
val_cfg = dict(type='ValLoop')
val_dataloader = dict(batch_size=1)
val_evaluator = dict(type='AccMetric')
test_evaluator = dict(type='AccMetric')
"""


class Captured(Exception):
    """Carries what stock code was about to use."""


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f'loaded_{path.stem}', path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stock_parser(tool: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    def capture(self, *args, **kwargs):
        raise Captured(self)

    module = load(STOCK_TOOLS / f'{tool}.py')
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, 'parse_args', capture)
        with pytest.raises(Captured) as caught:
            module.parse_args()
    return caught.value.args[0]


def stock_config(tool: str, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> dict:
    """The config that MMAction2's tool builds its runner from."""

    class Runner:
        @staticmethod
        def from_cfg(cfg):
            raise Captured(cfg)

    module = load(STOCK_TOOLS / f'{tool}.py')
    with monkeypatch.context() as patch:
        patch.setattr(module, 'Runner', Runner)
        patch.setattr(sys, 'argv', [tool, *argv])
        with pytest.raises(Captured) as caught:
            module.main()
    return caught.value.args[0].to_dict()


def our_config(tool: str, argv: list[str]) -> Config:
    args = cli.parse_args(PARSERS[tool](), argv)
    return MERGES[tool](Config.fromfile(args.config), args)


def describe(parser: argparse.ArgumentParser) -> dict[str, tuple]:
    return {
        action.dest: (
            sorted(action.option_strings),
            type(action),
            action.nargs,
            action.const,
            action.default,
            None if action.type is str else action.type,
            action.choices,
            action.required,
        )
        for action in parser._actions
    }


@pytest.fixture(autouse=True)
def _restore_local_rank(monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')


@pytest.fixture
def config(tmp_path) -> str:
    path = tmp_path / 'recipe.py'
    path.write_text(CONFIG)
    return str(path)


@pytest.mark.parametrize('tool', PARSERS)
def test_flags_are_those_of_mmaction2(tool, monkeypatch):
    stock, ours = describe(stock_parser(tool, monkeypatch)), describe(PARSERS[tool]())
    assert set(ours) == set(stock)
    for name, flag in stock.items():
        assert ours[name] == flag, name


@pytest.mark.parametrize('tool', PARSERS)
def test_positional_arguments_come_in_mmaction2s_order(tool, monkeypatch):
    def positionals(parser):
        return [action.dest for action in parser._actions if not action.option_strings]

    assert positionals(PARSERS[tool]()) == positionals(stock_parser(tool, monkeypatch))


@pytest.mark.parametrize('tool', PARSERS)
@pytest.mark.parametrize(('given', 'expected'), [(None, '3'), ('5', '5')])
def test_local_rank_is_exported_unless_the_launcher_did(tool, given, expected, monkeypatch, config):
    monkeypatch.delenv('LOCAL_RANK')
    if given is not None:
        monkeypatch.setenv('LOCAL_RANK', given)
    positionals = [config] if tool == 'train' else [config, 'weights.pth']
    cli.parse_args(PARSERS[tool](), [*positionals, '--local-rank=3'])
    assert os.environ['LOCAL_RANK'] == expected


@pytest.mark.parametrize(
    'flags',
    [
        '',
        '--work-dir out',
        '--resume',
        '--resume some.pth',
        '--amp',
        '--no-validate',
        '--auto-scale-lr',
        '--seed 3 --diff-rank-seed --deterministic',
        '--launcher slurm',
        '--cfg-options model.type=Recognizer2D work_dir=other optim_wrapper.optimizer.lr=0.5',
        '--work-dir out --cfg-options work_dir=other',
    ],
)
def test_train_config_equals_mmaction2s(flags, config, monkeypatch):
    argv = [config, *flags.split()]
    assert our_config('train', argv).to_dict() == stock_config('train', argv, monkeypatch)


@pytest.mark.parametrize(
    'flags',
    [
        '',
        '--work-dir out',
        '--dump out.pkl',
        '--show --interval 3 --wait-time 0.5',
        '--show-dir frames',
        '--launcher pytorch',
        '--work-dir out --cfg-options work_dir=other model.type=Recognizer2D',
        '--show --cfg-options default_hooks.visualization.interval=7',
    ],
)
def test_test_config_equals_mmaction2s(flags, config, monkeypatch):
    argv = [config, 'weights.pth', *flags.split()]
    ours = our_config('test', argv)
    if '--show' in flags:
        assert ours.pop('visualizer').type == 'ActionVisualizer'  # supplied where absent
    assert ours.to_dict() == stock_config('test', argv, monkeypatch)


def test_seed_flags_override_a_configs_randomness(config):
    Path(config).write_text(CONFIG + 'randomness = dict(seed=1, deterministic=True)')
    assert our_config('train', [config]).randomness == {'seed': 1, 'deterministic': True}
    assert our_config('train', [config, '--seed', '0']).randomness == {
        'seed': 0,
        'deterministic': True,
    }


def test_show_supplies_the_hook_that_the_config_lacks(config):
    Path(config).write_text("test_evaluator = dict(type='AccMetric')")
    cfg = our_config('test', [config, 'weights.pth', '--show-dir', 'frames'])
    hook = cfg.default_hooks.visualization
    assert (hook.type, hook.enable, hook.out_dir) == ('VisualizationHook', True, 'frames')
    assert cfg.visualizer.type == 'ActionVisualizer'


def test_dump_works_together_with_evaluator_options(config):
    argv = [config, 'weights.pth', '--dump', 'out.pkl']
    cfg = our_config('test', [*argv, '--cfg-options', 'test_evaluator.type=ConfusionMatrix'])
    assert [metric['type'] for metric in cfg.test_evaluator] == ['ConfusionMatrix', 'DumpResults']


def test_dump_is_a_metric_of_the_evaluator(config):
    evaluator = "dict(type='Evaluator', metrics=dict(type='AccMetric'))"
    Path(config).write_text(f'{CONFIG}\ntest_evaluator = {evaluator}')
    found = our_config('test', [config, 'weights.pth', '--dump', 'out.pkl']).test_evaluator
    assert found.type == 'Evaluator'
    assert [metric.type for metric in found.metrics] == ['AccMetric', 'DumpResults']


@pytest.mark.parametrize(
    ('tool', 'change', 'flags', 'message'),
    [
        ('train', "optim_wrapper = dict(type='Mine')", ['--amp'], "not 'Mine'"),
        ('train', 'auto_scale_lr = None', ['--auto-scale-lr'], 'base_batch_size'),
        ('test', '', ['weights.pth', '--dump', 'out.json'], 'out.json'),
        ('test', 'test_evaluator = None', ['weights.pth', '--dump', 'a.pkl'], 'test_evaluator'),
    ],
)
def test_impossible_requests_are_named(tool, change, flags, message, config):
    Path(config).write_text(f'{CONFIG}\n{change}')
    with pytest.raises(ValueError, match=message):
        our_config(tool, [config, *flags])


@pytest.mark.parametrize('tool', PARSERS)
def test_tools_check_the_config_before_they_build_a_runner(tool, config, monkeypatch):
    calls = []
    module = load_tool(tool)

    class Runner:
        def __init__(self, cfg):
            calls.append(('build', cfg.work_dir))

        def train(self):
            calls.append('train')

        def test(self):
            calls.append('test')

        def register_hook(self, hook):
            assert tool == 'test', 'training is as MMAction2 does it'

    monkeypatch.setattr(module.cli, 'leave_process_group', lambda: calls.append('leave'))
    monkeypatch.setattr(
        module, 'check_run', lambda cfg, *splits: calls.append(('check', cfg.work_dir))
    )
    monkeypatch.setattr(module.cli, 'build_runner', Runner)
    argv = [f'{tool}.py', config, '--work-dir', 'out', *(['weights.pth'] if tool == 'test' else [])]
    monkeypatch.setattr(sys, 'argv', argv)
    module.main()
    assert calls == [('check', 'out'), ('build', 'out'), tool, 'leave']


def test_a_process_group_is_left_after_a_pause(tmp_path, monkeypatch):
    """While Python sleeps, threads of the group can let go of their tensors."""
    pauses = []
    monkeypatch.setattr(
        cli.time, 'sleep', lambda s: pauses.append((s, distributed.is_initialized()))
    )
    cli.leave_process_group()
    assert not pauses  # there is none to leave
    address = f'file://{tmp_path / "group"}'
    distributed.init_process_group('gloo', init_method=address, rank=0, world_size=1)
    cli.leave_process_group()
    assert pauses == [(cli._LAST_TENSORS, True)]
    assert not distributed.is_initialized()


SCRIPTS = {
    'dist_train.sh': (['c.py', '2'], 'train.py', ['c.py', '--launcher', 'pytorch']),
    'dist_test.sh': (['c.py', 'w.pth', '2'], 'test.py', ['c.py', 'w.pth', '--launcher', 'pytorch']),
    'slurm_train.sh': (['gpu', 'job', 'c.py'], 'train.py', ['c.py', '--launcher', 'slurm']),
    'slurm_test.sh': (
        ['gpu', 'job', 'c.py', 'w.pth'],
        'test.py',
        ['c.py', 'w.pth', '--launcher', 'slurm'],
    ),
}


@pytest.fixture
def stand_ins(tmp_path) -> dict[str, str]:
    """Environment in which the interpreter and srun only print PYTHONPATH and their arguments."""
    for name in ('python', 'srun'):
        path = tmp_path / 'bin' / name
        path.parent.mkdir(exist_ok=True)
        path.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$PYTHONPATH" "${0##*/}" "$@"\n')
        path.chmod(0o755)
    keep = {key: value for key, value in os.environ.items() if key not in ('PYTHON', 'PYTHONPATH')}
    return {**keep, 'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}'}


@pytest.mark.parametrize('script', SCRIPTS)
def test_launchers_work_from_any_folder_and_keep_arguments_whole(script, stand_ins, tmp_path):
    arguments, tool, passed = SCRIPTS[script]
    extra = ['--cfg-options', 'names=[a, b]', 'glob=*']
    command = [TOOLS / script, *arguments, *extra]
    run = subprocess.run(
        command, env=stand_ins, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    path, _, *sent = run.stdout.splitlines()
    assert path == str(TOOLS.parent)
    assert sent[-len(passed + extra) - 1 :] == [str(TOOLS / tool), *passed, *extra]


def test_dist_launcher_reads_the_environment(stand_ins, tmp_path):
    env = {**stand_ins, 'NNODES': '3', 'NODE_RANK': '1', 'MASTER_ADDR': 'head', 'PORT': '1234'}
    env['PYTHONPATH'] = 'mine'
    run = subprocess.run(
        [TOOLS / 'dist_train.sh', 'c.py', '4'],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    path, _, *sent = run.stdout.splitlines()
    assert path == f'{TOOLS.parent}:mine'
    assert sent[:2] == ['-m', 'torch.distributed.run']
    assert set(sent) >= {
        '--nnodes=3',
        '--node_rank=1',
        '--master_addr=head',
        '--master_port=1234',
        '--nproc_per_node=4',
    }


@pytest.mark.parametrize('script', SCRIPTS)
def test_launchers_explain_missing_arguments(script, stand_ins):
    arguments = SCRIPTS[script][0][:-1]
    run = subprocess.run(
        [TOOLS / script, *arguments],
        env=stand_ins,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.startswith('usage: ')
    assert run.stdout == ''


def test_outputs_that_can_be_written_are_left_as_they_are(tmp_path):
    (tmp_path / 'old.json').write_text('old')
    (tmp_path / 'link.json').symlink_to('old.json')
    for path in ('old.json', 'new.json', 'link.json'):
        cli.check_out('--out', str(tmp_path / path))
    cli.check_out('--out', '/dev/null')
    os.mkfifo(tmp_path / 'pipe')
    cli.check_out('--out', str(tmp_path / 'pipe'))  # waits for nobody who reads
    assert {path.name for path in tmp_path.iterdir()} == {'old.json', 'link.json', 'pipe'}
    assert (tmp_path / 'link.json').read_text() == 'old'
