# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Tools that train go on after a kill, and tools that test want a whole network."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine import runner
from torch import nn

from commands import cli, steps
from studies import run as study_run

from ..checkpoints.files import content
from ..loading import load_tool


def demo(folder, commands, monkeypatch):
    tool = load_tool('run_demo')
    monkeypatch.setattr(steps, 'run', lambda *command: commands.append(command))
    tool.train('static_r2plus1d', folder, 0)
    final = tool.final_checkpoint('static_r2plus1d', folder)
    final.parent.mkdir(exist_ok=True)
    return final


def detection(folder, commands, monkeypatch):
    tool = load_tool('run_detection')
    monkeypatch.setattr(steps, 'run', lambda *command: commands.append(command))
    monkeypatch.setattr(tool.detection, 'score', lambda cfg, dump: None)
    run_folder = folder / 'VA-RED2_seed0'
    run_folder.mkdir(exist_ok=True)
    (run_folder / 'partial.pkl').touch()
    tool.train_and_test('VA-RED2', 0, folder)
    (run_folder / 'test.pkl').unlink()
    (final,) = [part for part in commands[-1] if part.endswith('.pth')]
    return final


@pytest.mark.parametrize('go', [demo, detection])
def test_a_killed_training_goes_on(go, tmp_path, monkeypatch):
    commands = []
    final = go(tmp_path, commands, monkeypatch)
    assert 'tools/train.py' in commands[0]
    assert '--resume' in commands[0]  # from nothing, which is a fresh start
    torch.save(content(), final)
    with open(final, 'rb') as file:
        whole = file.read()
    for part in (b'', whole[:1000], whole[:-1]):
        with open(final, 'wb') as file:
            file.write(part)
        commands.clear()
        go(tmp_path, commands, monkeypatch)
        assert 'tools/train.py' in commands[0]
    with open(final, 'wb') as file:
        file.write(whole)
    commands.clear()
    go(tmp_path, commands, monkeypatch)
    assert not any('tools/train.py' in command for command in commands)


def test_a_network_without_its_head_is_not_tested(tmp_path, monkeypatch, capsys):
    path = tmp_path / 'some.pth'
    torch.save({'state_dict': {'backbone.weight': torch.ones(1, 1)}}, path)
    model = nn.ModuleDict({'backbone': nn.Linear(1, 1, bias=False), 'cls_head': nn.Linear(1, 1)})
    stub = SimpleNamespace(
        test=lambda: runner.load_checkpoint(model, str(path)), register_hook=lambda hook: None
    )
    monkeypatch.setattr(cli, 'build_runner', lambda cfg: stub)
    tool = load_tool('test')
    monkeypatch.setattr(tool, 'check_run', lambda *_: None)
    (tmp_path / 'config.py').write_text('model = dict()')
    monkeypatch.setattr(sys, 'argv', ['test.py', str(tmp_path / 'config.py'), str(path)])
    with pytest.raises(SystemExit, match='2'):
        tool.main()
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r'some\.pth: .*expected cls_head\.weight', said)
    stub.test()  # training may start from it


def test_a_run_of_the_study_goes_on_from_what_is_whole(tmp_path):
    torch.save(content(1), tmp_path / 'epoch_1.pth')
    (tmp_path / 'epoch_2.pth').write_bytes(b'PK')
    (tmp_path / 'last_checkpoint').write_text('')
    assert study_run.last_checkpoint(tmp_path) == tmp_path / 'epoch_1.pth'


@pytest.mark.parametrize('name', ['run_demo', 'run_detection'])
def test_folders_of_demos_are_those_of_who_calls(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parse = load_tool(name).build_parser().parse_args
    assert Path(parse(['--work-dir', 'mine']).work_dir) == tmp_path / 'mine'
    root = Path(__file__).resolve().parents[2]
    assert Path(parse([]).work_dir).parent == root / 'work_dirs'
