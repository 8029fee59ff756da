# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Configs that cannot be read: file, line and reason in one line."""

import re

import pytest
from mmengine.config import Config

from vared2_mmaction.apis.check import check_config
from vared2_mmaction.apis.config_file import read_config_file
from vared2_mmaction.apis.weights import check_checkpoint

WRONG = {
    # File: (its text, the file and line that are named, what is said).
    'open.py': ('model = dict(\nx = 3\n', 'open.py, line 1', 'SyntaxError: .*never closed'),
    'equal.py': ('a = 1\nx = = 3\n', 'equal.py, line 2', 'SyntaxError: invalid syntax'),
    'indent.py': ('a = 1\n  b = 2\n', 'indent.py, line 2', 'IndentationError: unexpected indent'),
    'heir.py': ("_base_ = 'equal.py'\n", 'equal.py, line 2', 'SyntaxError: invalid syntax'),
    'misspelt.py': (
        "a = 1\n_base_ = ['right.py', 'rigth.py']\n",
        'misspelt.py, line 2',
        "'.*rigth.py': no such file",
    ),
    'grandson.py': (
        "_base_ = 'misspelt.py'\n",
        'misspelt.py, line 2',
        "'.*rigth.py': no such file",
    ),
    'package.py': (
        "_base_ = 'mmaction::recognition/nope.py'\n",
        'package.py',
        'file ".*recognition/nope.py" does not exist',
    ),
    'stranger.py': ("_base_ = 'mmnothing::a/b.py'\n", 'stranger.py', 'AssertionError: .*mmnothing'),
    'name.py': ('a = 1\nb = undefined\n', 'name.py, line 2', "NameError: name 'undefined'"),
    'zero.py': ('a = 1\n\nb = 1 / 0\n', 'zero.py, line 3', 'ZeroDivisionError: division by zero'),
    'variable.py': (
        "_base_ = 'right.py'\nb = _base_.nothing\n",
        'variable.py, line 2',
        "AttributeError: .*'nothing'",
    ),
    'import.py': ("custom_imports = dict(imports=['nomodule'])\n", 'import.py', "'nomodule'"),
    'inside.py': (
        "custom_imports = dict(imports=['broken_module'])\n",
        'inside.py',
        "cannot import name 'nothing' from 'json'",
    ),
    'kind.py': ("_base_ = 'right.py'\nx = dict(a=1)\n", 'kind.py', 'TypeError: x=.*child config'),
    'lazy.py': (
        'from mmengine.config import read_base\nwith read_base():\n    from .nothing import *\n',
        'lazy.py',
        'nothing.py not found!',
    ),
    'list.yaml': ('a: 1\nb: [1, 2\n', 'list.yaml', 'ParserError: '),
    'object.json': ('{"a": 1,', 'object.json', 'Expecting property name'),
    'text.txt': ('hello', 'text.txt', 'Only py/yml/yaml/json'),
    'null.py': ('a = 1\0', 'null.py', 'null bytes'),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, (text, *_) in WRONG.items():
        (tmp_path / name).write_text(text)
    (tmp_path / 'right.py').write_text('x = 1\nlist = [1, 2]\nmodel = dict(depth=18)\n')
    (tmp_path / 'broken_module.py').write_text('from json import nothing\n')
    (tmp_path / 'binary.py').write_bytes(b'\x80\x81\xff')
    return tmp_path


@pytest.mark.parametrize('name', WRONG)
def test_what_cannot_be_read_is_named(name, folder):
    _, place, reason = WRONG[name]
    where = re.escape(place)
    message = rf"\ACONFIG='{name}' cannot be read: [^ ]*{where}: [^\n]*{reason}[^\n]*\Z"
    with pytest.raises(ValueError, match=message) as caught:
        read_config_file(name)
    assert caught.value.__cause__ is not None  # for --traceback


def test_files_that_are_no_text(folder):
    with pytest.raises(ValueError, match="CONFIG='binary.py' cannot be read: .*binary.py: "):
        read_config_file('binary.py')
    (folder / 'folder.py').mkdir()
    for name in ('gone.py', 'folder.py'):
        with pytest.raises(FileNotFoundError, match=f"CONFIG='{name}': no such file"):
            read_config_file(name)


@pytest.mark.parametrize(
    ('key', 'value', 'reason'),
    [
        ('x.y', 3, 'TypeError: .*child config cannot inherit'),
        ('list.7', 3, 'KeyError: Index 7 exceeds the length'),
        ('list.first', 3, 'TypeError: list indices'),
        ('list.1.y', 3, 'AttributeError: '),
    ],
)
def test_options_that_do_not_fit_are_named(key, value, reason, folder):
    with pytest.raises(ValueError, match=rf'\A--cfg-options {key}={value}: {reason}[^\n]*\Z'):
        read_config_file('right.py', {key: value})


def test_options_of_misspelt_settings_are_refused(folder):
    (folder / 'loaders.py').write_text('train_dataloader = dict()\noptim_wrapper = dict()\n')
    for key, meant in (
        ('optim_wraper.lr', 'optim_wrapper'),
        ('train_dataloder', 'train_dataloader'),
        ('optim_wrappers.lr', 'optim_wrapper'),
    ):
        named = f"--cfg-options {key}: .*'{key.split('.')[0]}'; is '{meant}' meant?"
        with pytest.raises(ValueError, match=named):
            read_config_file('loaders.py', {key: 3})
    new = {'val_dataloader.batch_size': 1, 'compile': True, 'test_dataloader': {}}
    assert read_config_file('loaders.py', new).val_dataloader == {'batch_size': 1}


def test_options_replace_settings(folder):
    (folder / 'steps.py').write_text("_base_ = 'right.py'\nsteps = [dict(a=1), dict(a=2)]\n")
    cfg = read_config_file('steps.py', {'model.depth': 50, 'steps.1.a': 7, 'a.b.c': 'new'})
    assert cfg.to_dict() == {
        'x': 1,
        'list': [1, 2],
        'steps': [{'a': 1}, {'a': 7}],
        'model': {'depth': 50},
        'a': {'b': {'c': 'new'}},
    }


def test_a_checkpoint_at_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'x.pth').touch()
    check_checkpoint('~/x.pth')
    model = {'type': 'Recognizer2D', 'backbone': {'type': 'ResNet', 'depth': 18}}
    check_config(Config({'model': model, 'load_from': '~/x.pth', 'default_scope': 'mmaction'}))
