# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What tells a user nothing is left out, and what a user causes is not."""

import logging
import subprocess
import sys
import warnings

import pytest
from mmengine.evaluator import BaseMetric, DumpResults
from mmengine.fileio import FileClient
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from torch import nn

from vared2_mmaction import quiet

from .loading import TOOLS

COMMAND = """
import runpy, sys, warnings
import vared2_mmaction
from mmengine.utils import is_installed
assert is_installed('mmaction2')
warnings.warn('pkg_resources is deprecated as an API: said here')
sys.path[0], sys.argv = sys.argv[1], ['train.py', 'misspelt.py']
runpy.run_path(sys.path[0] + '/train.py', run_name='__main__')
"""


@pytest.fixture
def logged():
    """Records of the logger that MMEngine takes as the current one."""
    logger = MMLogger.get_instance('test_quiet')
    assert MMLogger.get_current_instance() is logger

    class Keeper(logging.Handler):
        def emit(self, record):
            records.append((record.levelname, record.getMessage()))

    records: list[tuple[str, str]] = []
    handler = Keeper()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)
    MMLogger._instance_dict.pop('test_quiet')


def test_a_command_tells_its_own_warnings_and_a_mistake_in_one_line(tmp_path):
    """In a process of its own, which imports everything and ends with status 2."""
    (tmp_path / 'misspelt.py').write_text("_base_ = 'rigth.py'\n")
    given = {'PYTHONPATH': str(TOOLS.parent), 'PATH': '', 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-c', COMMAND, str(TOOLS)]
    done = subprocess.run(command, env=given, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ''
    warning, mistake = done.stderr.splitlines()
    assert 'UserWarning: pkg_resources is deprecated as an API: said here' in warning
    assert mistake.startswith("train.py: error: CONFIG='misspelt.py' cannot be read: ")


@pytest.mark.parametrize(
    ('message', 'module', 'left_out'),
    [
        ('pkg_resources is deprecated as an API. See', 'mmengine.utils.package_utils', True),
        ('pkg_resources is deprecated as an API. See', 'importlib', True),
        ('pkg_resources is deprecated as an API. See', 'my_project', False),
        ('Fail to import ``MultiScaleDeformableAttention``', 'mmcv.cnn.bricks.transformer', True),
        ('Fail to import ``SparseConv``', 'mmcv.cnn.bricks.transformer', False),
        ('`broadcast_buffers` is deprecated', 'mmengine.model.wrappers.distributed', True),
        ('`broadcast_buffers` is deprecated', '__main__', False),
        (
            'Grad strides do not match bucket view strides.\n'
            'grad.sizes() = [13, 16, 1, 1, 1], strides() = [16, 1, 16, 16, 16]',
            'torch.autograd.graph',
            True,
        ),
        (
            'Grad strides do not match bucket view strides.\n'
            'grad.sizes() = [13, 16, 1, 3, 3], strides() = [144, 1, 144, 48, 16]',
            'torch.autograd.graph',
            False,
        ),
    ],
)
def test_warnings_are_told_by_text_and_module(message, module, left_out):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        quiet.apply()
        warnings.warn_explicit(message, UserWarning, 'file.py', 1, module=module)
    assert len(caught) == (not left_out)


def test_file_client_is_deprecated_for_users_only(logged):
    for module in ('mmaction.datasets', 'mmengine.hooks.checkpoint_hook'):
        exec(
            'FileClient("disk"), FileClient.infer_client(uri=".")',
            {**globals(), '__name__': module},
        )
    assert logged == []
    FileClient('disk')
    ((level, said),) = logged
    assert level == 'WARNING'
    assert '"FileClient" will be deprecated' in said


class Nameless(BaseMetric):
    """A metric without a prefix for its values."""

    def process(self, data_batch, data_samples):
        raise NotImplementedError

    def compute_metrics(self, results):
        raise NotImplementedError


def test_a_dump_has_no_values_to_name(logged):
    DumpResults('results.pkl')
    assert logged == []
    Nameless()
    assert logged == [('WARNING', 'The prefix is not set in metric class Nameless.')]


def build(custom_keys, layers=2):
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(layers)))
    paramwise = {'custom_keys': custom_keys} if custom_keys else None
    optimizer = {'type': 'SGD', 'lr': 0.5, 'weight_decay': 0.5}
    return build_optim_wrapper(model, {'optimizer': optimizer, 'paramwise_cfg': paramwise})


def test_options_of_parameters_are_for_debugging(logged):
    build({'0.': {'lr_mult': 0.5}, '2.bias': {'lr_mult': 2.0, 'decay_mult': 0.0}}, layers=3)
    lines = [(level, said) for level, said in logged if 'paramwise' in said]
    assert len(lines) == 2 * 3 + 4
    assert lines[0] == ('DEBUG', 'paramwise_options -- 0.weight:lr=0.25')
    assert {level for level, _ in lines} == {'DEBUG'}
