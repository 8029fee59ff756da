# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Hostile and broken files are refused by name, and nothing in them is executed."""

import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import load_checkpoint
from mmengine.structures import BaseDataElement, InstanceData
from torch import nn

from policy_report.dump import load_dump
from vared2_mmaction.apis.weights import load_weights
from vared2_mmaction.checkpoints import arrays
from vared2_mmaction.checkpoints.reading import CheckpointError, read_progress

from . import hostile
from .files import content

TOUCHED = Path(tempfile.gettempdir()) / f'touched_{os.getpid()}'
CHECKPOINTS = dict(hostile.checkpoints(TOUCHED, content()))
SAMPLES = [{'pred_score': torch.arange(3.0), 'array': np.eye(2), 'number': np.float32(1)}]
DUMPS = dict(hostile.dumps(TOUCHED, SAMPLES))
SHARED = (BaseDataElement, InstanceData, arrays.PlainArray, arrays.PlainDtype)


def test_there_are_enough():
    assert len(CHECKPOINTS) >= 60
    assert len(DUMPS) >= 70


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('name', CHECKPOINTS)
def test_checkpoints_are_refused(name, tmp_path):
    path = str(tmp_path / 'file.pth')
    Path(path).write_bytes(CHECKPOINTS[name])
    model = nn.Linear(2, 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for load in (
        read_progress,
        lambda path: load_checkpoint(model, path),
        lambda path: load_weights(model, path),
    ):
        with pytest.raises(ValueError, match='file.pth') as caught:
            load(path)
        assert '\n' not in str(caught.value)
        assert 'weights_only' not in str(caught.value)  # PyTorch's advice to switch it off
    assert not os.path.lexists(TOUCHED)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize('name', DUMPS)
def test_dumps_are_refused(name, tmp_path):
    path = str(tmp_path / 'file.pkl')
    Path(path).write_bytes(DUMPS[name])
    with pytest.raises(ValueError, match='file.pkl') as caught:
        load_dump(path)
    assert '\n' not in str(caught.value)
    assert not os.path.lexists(TOUCHED)
    assert not any('__iter__' in vars(shared) for shared in SHARED)


def test_right_ones_are_not(tmp_path):
    torch.save(content(3, 12), tmp_path / 'file.pth')
    assert read_progress(str(tmp_path / 'file.pth')) == (12, 3)
    load_checkpoint(nn.Linear(2, 3), str(tmp_path / 'file.pth'))
    torch.save(SAMPLES, tmp_path / 'file.pth')
    with pytest.raises(CheckpointError, match='expected a dict with a state_dict, found a list'):
        read_progress(str(tmp_path / 'file.pth'))
    (tmp_path / 'file.pkl').write_bytes(pickle.dumps(SAMPLES, protocol=2))
    (found,) = load_dump(str(tmp_path / 'file.pkl'))
    for key, value in SAMPLES[0].items():
        np.testing.assert_array_equal(found[key], value)
