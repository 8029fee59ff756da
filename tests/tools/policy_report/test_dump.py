# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""A dump is read as it was written, and nothing in it is executed."""

import codecs
import io
import os
import pickle

import mmengine
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from policy_report.dump import load_dump

BATCH = torch.arange(12.0).view(4, 3)


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / 'dump.pkl'
        # MMEngine dumps with protocol 2.
        path.write_bytes(
            content if isinstance(content, bytes) else pickle.dumps(content, protocol=2)
        )
        return str(path)

    return write


class Calls:
    """Asks whoever loads it to call a function."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def test_what_tests_dump_is_read(write):
    values = {
        'pred_score': BATCH[1],
        'policy': torch.tensor([[[0, 2]]]),
        'half': torch.ones(2, dtype=torch.bfloat16),
        'array': np.eye(2),
        'number': np.float32(0.5),
        'plain': (1, 'name', None, [0.5]),
        'boxes': InstanceData(bboxes=torch.ones(2, 4)),
    }
    (found,) = load_dump(write([values]))
    for key in ('pred_score', 'policy', 'half'):
        assert torch.equal(found[key], values[key])
        assert found[key].dtype == values[key].dtype
    assert np.array_equal(found['array'], values['array'])
    assert (found['number'], found['plain']) == (values['number'], values['plain'])
    assert torch.equal(found['boxes'].bboxes, values['boxes'].bboxes)


def test_samples_of_a_batch_share_its_memory(tmp_path):
    path = str(tmp_path / 'dump.pkl')
    mmengine.dump([{'pred_score': row} for row in BATCH], path)
    scores = [sample['pred_score'] for sample in load_dump(path)]
    assert torch.equal(torch.stack(scores), BATCH)
    assert len({score.untyped_storage().data_ptr() for score in scores}) == 1


def storage_that_calls(function, *args):
    """A tensor whose memory, a file inside the pickle, asks for a function."""
    stream = io.BytesIO()
    torch.save(Calls(function, *args), stream, _use_new_zipfile_serialization=False)
    return Calls(torch.storage._load_from_bytes, stream.getvalue())


@pytest.mark.parametrize('inside', [Calls, storage_that_calls])
@pytest.mark.parametrize(
    ('function', 'name'), [(os.system, r'\w+\.system'), (eval, r'\beval'), (open, r'\w+\.open')]
)
def test_what_a_dump_may_not_call_is_refused_by_name(write, inside, function, name, tmp_path):
    touched = tmp_path / 'touched'
    arguments = {os.system: [f'touch {touched}'], open: [str(touched), 'w']}
    arguments[eval] = [f'open({str(touched)!r}, "w")']
    path = write([{'policy': inside(function, *arguments[function])}])
    with pytest.raises(ValueError, match=rf'dump\.pkl: .*{name}'):
        load_dump(path)
    assert not touched.exists()


def test_only_the_codec_of_bytes_is_allowed(write):
    with pytest.raises(ValueError, match="codec 'rot13'; it is refused"):
        load_dump(write([Calls(codecs.encode, 'text', 'rot13')]))


@pytest.mark.parametrize('length', [0, 1, 40, -1])
def test_a_cut_dump_is_named(write, length):
    whole = pickle.dumps([{'pred_score': BATCH[0]}])
    with pytest.raises(ValueError, match=r'dump\.pkl: expected what tools/test.py .*cut off'):
        load_dump(write(whole[:length]))


@pytest.mark.parametrize('content', [b'no pickle', b'PK\3\4 a checkpoint', bytes(range(128, 228))])
def test_another_file_is_named(write, content):
    with pytest.raises(ValueError, match=r'dump\.pkl: expected what tools/test.py --dump writes'):
        load_dump(write(content))


@pytest.mark.parametrize('content', [{}, [], [1], 'text', [{}, None]])
def test_a_pickle_of_something_else_is_named(write, content):
    with pytest.raises(ValueError, match=r'dump\.pkl: expected .* a list of (samples|dicts)'):
        load_dump(write(content))


def test_a_missing_dump_is_named():
    with pytest.raises(FileNotFoundError, match=r'missing\.pkl'):
        load_dump('missing.pkl')
