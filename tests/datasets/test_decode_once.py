# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Videos that are decoded once give what they give when they are decoded every time."""

import cv2
import numpy as np
import pytest
from mmaction.registry import TRANSFORMS
from mmaction.utils import register_all_modules
from mmcv.transforms import Compose

from synthetic.moving_shapes import MovingShapes, make_moving_shapes

pytestmark = pytest.mark.fast

DECODE = [
    dict(type='DecordInit', num_threads=1),
    dict(type='SampleFrames', clip_len=8, frame_interval=1, num_clips=1),
    dict(type='DecordDecode'),
    dict(type='Resize', scale=(40, 40), keep_ratio=False),
]
REST = [
    dict(type='RandomCrop', size=32),
    dict(type='Flip', flip_ratio=0.5),
    dict(type='FormatShape', input_format='NCTHW'),
    dict(type='PackActionInputs'),
]


def epochs(pipeline, videos, number, after_first=lambda: None):
    """What a pipeline makes of videos, epoch by epoch, from the same random numbers."""
    np.random.seed(0)
    transforms = Compose([TRANSFORMS.build(transform) for transform in pipeline])
    found = []
    for epoch in range(number):
        for label, name in enumerate(videos):
            info = dict(filename=name, label=label, start_index=0, modality='RGB')
            packed = transforms(info)
            found.append((packed['inputs'].numpy(), packed['data_samples'].gt_label.item()))
        if epoch == 0:
            after_first()
    return found


def test_epochs_equal_those_that_decode_again(tmp_path):
    register_all_modules()
    folder = tmp_path / 'set'
    make_moving_shapes(
        folder, MovingShapes(train=2, val=1, test=1, frames=8, classes=('grows', 'moves_left'))
    )
    videos = sorted(map(str, (folder / 'train').glob('*.mp4')))
    assert len(videos) == 2
    again = epochs([*DECODE, *REST], videos, 10)
    once = epochs(
        [dict(type='DecodeOnce', transforms=DECODE), *REST],
        videos,
        10,
        after_first=lambda: folder.rename(tmp_path / 'gone'),  # nobody opens them again
    )
    for (found, label), (expected, expected_label) in zip(once, again, strict=True):
        assert np.array_equal(found, expected)
        assert label == expected_label
    assert not np.array_equal(once[0][0], once[2][0])  # what comes after is drawn each time


def test_a_video_without_a_name():
    register_all_modules()
    with pytest.raises(ValueError, match=r"expected filename or frame_dir, found \['label'\]"):
        TRANSFORMS.build(dict(type='DecodeOnce', transforms=DECODE))(dict(label=0))


def test_samples_of_one_video_keep_what_is_their_own(tmp_path):
    register_all_modules()
    few = MovingShapes(train=1, val=1, test=1, frames=16, size=32)
    make_moving_shapes(tmp_path / 'set', few, workers=1)
    (name,) = (tmp_path / 'set' / 'train').iterdir()
    once = TRANSFORMS.build(dict(type='DecodeOnce', transforms=DECODE))
    info = dict(filename=str(name), start_index=0, modality='RGB')
    for _ in range(2):
        for index in range(2):
            assert once({**info, 'sample_idx': index, 'label': index + 5})['label'] == index + 5
            assert once({**info, 'timestamp': index})['timestamp'] == index


def test_folders_of_frames_are_kept_by_what_is_read_of_them(tmp_path):
    register_all_modules()
    for name, level in (('rgb', 10), ('x', 20), ('y', 30), ('grey', 40)):
        for t in range(1, 5):
            cv2.imwrite(str(tmp_path / f'{name}_{t}.png'), np.full((8, 8, 3), level + t, np.uint8))
    steps = [dict(type='SampleFrames', clip_len=1, test_mode=True), dict(type='RawFrameDecode')]
    once = TRANSFORMS.build(dict(type='DecodeOnce', transforms=steps))
    plain = dict(frame_dir=str(tmp_path), filename_tmpl='rgb_{}.png', modality='RGB')
    plain.update(total_frames=3, start_index=1, offset=0)
    for changes, level in (
        ({}, 12),
        ({'filename_tmpl': 'grey_{}.png'}, 42),
        ({'offset': 1}, 13),
        ({'total_frames': 1}, 11),
        ({'modality': 'Flow', 'filename_tmpl': '{}_{}.png'}, 22),
        ({}, 12),
    ):
        assert once({**plain, **changes})['imgs'][0].flat[0] == level
    for path in tmp_path.iterdir():
        path.unlink()
    assert once(plain)['imgs'][0].flat[0] == 12
