# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Both annotations of J-HMDB give the same, and MMAction2 reads it."""

import os
import pickle

import numpy as np
import pytest
from mmaction.registry import DATASETS
from mmaction.utils import register_all_modules
from scipy.io import savemat

from annotations import jhmdb

from ...checkpoints.hostile import arrays
from ...loading import load_tool

LABELS = ['catch', 'wave']
# Class, video, part of split 2, frames.
VIDEOS = [('catch', 'A', 1, 4), ('catch', 'B', 2, 3), ('wave', 'C', 1, 5), ('wave', 'D', 2, 1)]
HEIGHT, WIDTH = 24, 32
HOSTILE = dict(arrays())


def box(video, frame):
    """x1, y1, x2, y2 in pixels."""
    x, y = 2 + frame, ord(video) - ord('A')
    return [x, y, x + 10, y + 15]


@pytest.fixture
def published(tmp_path):
    for label, video, part, frames in VIDEOS:
        mask = np.zeros((HEIGHT, WIDTH, frames), np.uint8)
        for t in range(frames):
            x1, y1, x2, y2 = box(video, t + 1)
            mask[y1:y2, x1:x2, t] = 3
            mask[y1, x1 + 1 : x2, t] = 0  # not all of a person's box is the person
        folder = tmp_path / 'puppet_mask' / label / video
        folder.mkdir(parents=True)
        savemat(folder / 'puppet_mask.mat', {'part_mask': mask})
        (tmp_path / 'splits').mkdir(exist_ok=True)
        with open(tmp_path / 'splits' / f'{label}_test_split2.txt', 'a') as file:
            file.write(f'{video}.avi {part} \n')
    return tmp_path


@pytest.fixture
def pickled(tmp_path):
    tubes, resolution = {}, {}
    lists = {1: [[], [], []], 2: [[], [], []]}
    for label, video, part, frames in VIDEOS:
        name = f'{label}/{video}'
        rows = [[t, *box(video, t)] for t in range(1, frames + 1)]
        tubes[name] = {LABELS.index(label): [np.array(rows, np.float32)]}
        resolution[name] = (HEIGHT, WIDTH)
        lists[part][1].append(name)
    content = {
        'labels': LABELS,
        'gttubes': tubes,
        'nframes': {f'{label}/{video}': frames for label, video, _, frames in VIDEOS},
        'train_videos': lists[1],
        'test_videos': lists[2],
        'resolution': resolution,
    }
    path = tmp_path / 'JHMDB-GT.pkl'
    path.write_bytes(pickle.dumps(content, protocol=2))  # as of Python 2
    return path


def test_both_sources_agree(published, pickled):
    one = jhmdb.read_pickle(pickled, 2)
    other = jhmdb.read_published(published / 'puppet_mask', published / 'splits', 2)
    assert one.labels == other.labels == LABELS
    for part, frames in (('train', 9), ('test', 4)):
        assert len(one.keyframes[part]) == len(other.keyframes[part]) == frames
        for a, b in zip(one.keyframes[part], other.keyframes[part], strict=True):
            assert a.key == b.key
            assert a.actions == b.actions
            np.testing.assert_allclose(a.boxes, b.boxes)
    last = one.keyframes['test'][-1]
    assert last.key == 'wave/D.avi,0001'
    assert last.actions == [[2]]
    pixels = last.boxes[0] * (WIDTH, HEIGHT, WIDTH, HEIGHT)
    np.testing.assert_allclose(pixels, box('D', 1))


def test_mmaction_reads_it(pickled, tmp_path, capsys):
    out = tmp_path / 'annotations'
    tool = load_tool('data/convert_jhmdb')
    tool.main(['--pickle', str(pickled), '--out', str(out), '--split', '2', '--step', '2'])
    assert '5 frames to train on, 4 to test' in capsys.readouterr().out
    register_all_modules()
    for part, stamps in (('train', [1, 3, 1, 3, 5]), ('test', [1, 2, 3, 1])):
        stem = out / f'jhmdb_{part}_split2'
        data = DATASETS.build(
            dict(
                type='AVADataset',
                ann_file=f'{stem}.csv',
                exclude_file=f'{stem}_excluded_timestamps.csv',
                proposal_file=f'{stem}_ground_truth_boxes.pkl',
                label_file=str(out / 'actions.pbtxt'),
                data_prefix=dict(img='videos'),
                pipeline=[],
                num_classes=3,
                use_frames=False,
                fps=1,
                timestamp_start=1,
                start_index=0,
            )
        )
        infos = [data.get_data_info(i) for i in range(len(data))]
        assert [info['timestamp'] for info in infos] == stamps
        for info in infos:
            assert info['filename'].startswith(os.path.join('videos', ''))
            np.testing.assert_allclose(info['gt_bboxes'], info['proposals'], atol=1e-4)
            assert info['gt_labels'].tolist() == [[0, *(c in info['filename'] for c in LABELS)]]


class Evil:
    def __reduce__(self):
        return os.system, ('true',)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({'labels': Evil()}, r'it contains (posix|nt)\.system; expected arrays only'),
        ({'labels': LABELS}, "'gttubes' is missing"),
        ([1, 2], "'labels' is missing"),
    ],
)
def test_another_pickle_is_refused(content, message, tmp_path):
    path = tmp_path / 'JHMDB-GT.pkl'
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message):
        jhmdb.read_pickle(path, 1)


def test_mistakes_are_named(published, pickled, capsys):
    masks, splits = published / 'puppet_mask', published / 'splits'
    with pytest.raises(FileNotFoundError, match='CLASS_test_split1.txt, found none'):
        jhmdb.read_published(masks, splits, 1)
    with pytest.raises(ValueError, match='--split 4: expected 1 to 3'):
        jhmdb.read_pickle(pickled, 4)
    right = (splits / 'wave_test_split2.txt').read_text()
    (splits / 'wave_test_split2.txt').write_text('C.avi 1\nD.avi 3\n')
    with pytest.raises(ValueError, match=r'wave_test_split2.txt, line 2: expected "VIDEO.avi 1"'):
        jhmdb.read_published(masks, splits, 2)
    (splits / 'wave_test_split2.txt').write_text(right)
    path = masks / 'catch' / 'A' / 'puppet_mask.mat'
    savemat(path, {'pos_img': np.zeros(3)})
    with pytest.raises(ValueError, match=r'A/puppet_mask\.mat: expected part_mask'):
        jhmdb.read_published(masks, splits, 2)
    path.unlink()
    with pytest.raises(FileNotFoundError, match='no such mask'):
        jhmdb.read_published(masks, splits, 2)
    tool = load_tool('data/convert_jhmdb')
    for wrong in (['--pickle', 'none'], ['--puppet-mask', str(masks)], []):
        with pytest.raises(SystemExit):
            tool.main([*wrong, '--out', str(published / 'out')])
    assert '--splits: expected beside --puppet-mask' in capsys.readouterr().err


@pytest.mark.parametrize('name', HOSTILE)
def test_no_pickle_is_more_than_arrays(name, tmp_path):
    path = tmp_path / 'JHMDB-GT.pkl'
    path.write_bytes(pickle.dumps({'labels': HOSTILE[name]}, protocol=2))
    with pytest.raises(ValueError, match='JHMDB-GT.pkl') as caught:
        jhmdb.read_pickle(path, 1)
    assert '\n' not in str(caught.value)
    assert 'is missing' not in str(caught.value)  # it was not read
