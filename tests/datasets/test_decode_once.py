# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Videos that are decoded once give what they give when they are decoded every time."""

import numpy as np
import pytest
from mmaction.registry import TRANSFORMS
from mmaction.utils import register_all_modules
from mmcv.transforms import Compose

from vared2_mmaction.datasets.moving_shapes import MovingShapes, make_moving_shapes

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


def test_epochs_equal_those_that_decode_again(tmp_path):
    register_all_modules()
    set_of = MovingShapes(train=2, val=1, test=1, frames=8, classes=('grows', 'moves_left'))
    make_moving_shapes(tmp_path, set_of)
    videos = sorted(str(path) for path in (tmp_path / 'train').glob('*.mp4'))
    assert len(videos) == 2
    found = []
    for pipeline in ([dict(type='DecodeOnce', transforms=DECODE), *REST], [*DECODE, *REST]):
        np.random.seed(0)
        transforms = Compose([TRANSFORMS.build(transform) for transform in pipeline])
        for epoch in range(3):
            for label, name in enumerate(videos):
                info = dict(filename=name, label=label, start_index=0, modality='RGB')
                packed = transforms(info)
                found.append((packed['inputs'].numpy(), packed['data_samples'].gt_label.tolist()))
            if epoch == 0 and len(found) == 2:
                (tmp_path / 'moved').mkdir()
                for name in videos:  # nobody opens them again
                    (tmp_path / 'train' / name).rename(tmp_path / 'moved' / name.split('/')[-1])
        for path in (tmp_path / 'moved').glob('*.mp4'):
            path.rename(tmp_path / 'train' / path.name)
    once, again = found[:6], found[6:]
    for (a, label), (b, expected) in zip(once, again, strict=True):
        assert np.array_equal(a, b)
        assert label == expected
    assert not np.array_equal(once[0][0], once[2][0])  # what comes after is drawn each time


def test_a_video_without_a_name():
    register_all_modules()
    with pytest.raises(KeyError, match='filename'):
        TRANSFORMS.build(dict(type='DecodeOnce', transforms=DECODE))(dict(label=0))
