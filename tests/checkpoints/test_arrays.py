# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Plain numbers and arrays of them come back as they were, from checkpoints and from dumps."""

import copy
import io
import pickle
import pickletools

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from policy_report.dump import load_dump

pytestmark = pytest.mark.fast

VALUES = [
    *(np.arange(6).astype(code).reshape(2, 3) for code in ('?', 'i1', 'u2', '<i4', '>i4', 'i8')),
    *(np.linspace(0, 1, 6).astype(code).reshape(2, 3) for code in ('f2', '<f4', '>f8', 'c16')),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(12.0)[::2],
    np.zeros((0, 4)),
    np.array(3.5),
    np.float32(0.1),
    np.float64(0.1),
    np.int64(-7),
    np.bool_(True),
    np.complex64(1 + 2j),
]


def from_checkpoint(value, tmp_path):
    torch.save({'a': value}, tmp_path / 'some.pth')
    return torch.load(tmp_path / 'some.pth', weights_only=True)['a']


def from_dump(value, tmp_path):
    (tmp_path / 'some.pkl').write_bytes(pickle.dumps([{'a': value}], protocol=2))
    return load_dump(str(tmp_path / 'some.pkl'))[0]['a']


@pytest.mark.parametrize('read', [from_checkpoint, from_dump])
@pytest.mark.parametrize('value', VALUES, ids=lambda value: f'{value.dtype.str}{value.shape}')
def test_values_come_back(value, read, tmp_path):
    found = read(value, tmp_path)
    assert isinstance(found, np.ndarray) == isinstance(value, np.ndarray)
    assert found.shape == value.shape
    assert found.dtype.newbyteorder('=') == value.dtype.newbyteorder('=')
    np.testing.assert_array_equal(found, value)
    np.testing.assert_array_equal(copy.deepcopy(found), value)
    if isinstance(value, np.ndarray):
        assert found.flags.f_contiguous == value.flags.f_contiguous or value.ndim < 2
        assert type(np.append(found, np.ones(1))) is np.ndarray
        native = value.astype(value.dtype.newbyteorder('='), order='K')
        assert pickle.dumps(found, 2) == pickle.dumps(native, 2)


def test_a_history_that_was_loaded_is_saved_without_a_trace(tmp_path):
    history = HistoryBuffer()
    history.update(1.0)
    loaded = from_checkpoint(history, tmp_path)
    again = io.BytesIO()
    torch.save(loaded, again, _use_new_zipfile_serialization=False)
    assert b'vared2' not in again.getvalue()
    loaded.update(2.0)
    assert loaded.mean() == 1.5
    assert type(loaded.data[0]) is np.ndarray


def test_what_is_saved_asks_for_numpys_own(tmp_path):
    found = from_dump(np.eye(2), tmp_path)
    steps = pickletools.genops(pickle.dumps(found, 2))
    asked = [argument for step, argument, _ in steps if step.name == 'GLOBAL']
    assert all(name.startswith(('numpy', '_codecs')) for name in asked)
