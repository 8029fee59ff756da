# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Strips of detection: the keyframe with its boxes, and the frames that the network sees."""

import cv2
import numpy as np
import pytest
from mmaction.datasets import AVADataset
from mmengine.dataset import ConcatDataset

from annotations.ava_format import Keyframe, write_annotations
from policy_report.boxes import ANNOTATED, GAP, PREDICTED
from policy_report.keyframes import KeyframeReader, beside
from policy_report.videos import read_videos
from policy_report.visualize import read_sources

from .predictions import detection
from .test_boxes import pixels

SIZE, FRAMES, HEIGHT = 48, 60, 96
CLASSES = ['background', 'walk', 'run']
PIPELINE = [
    {'type': 'mmaction.SampleAVAFrames', 'clip_len': 4, 'frame_interval': 2, 'test_mode': True},
    {'type': 'mmaction.RawFrameDecode'},
]
KEYFRAME = Keyframe('a', 903, np.array([[0.25, 0.25, 0.5, 0.5]]), [(1, 2)])
FOUND = [0.6, 0.5, 0.9, 0.75]


@pytest.fixture
def dataset(tmp_path):
    """Two keyframes of a video of 10 frames a second, whose frame t has colour (4 t, 0, 0)."""
    (tmp_path / 'a').mkdir()
    for t in range(FRAMES):
        image = np.full((SIZE, SIZE, 3), (0, 0, 4 * t), np.uint8)  # OpenCV has blue first
        cv2.imwrite(str(tmp_path / 'a' / f'img_{t:05}.png'), image)
    late = KEYFRAME._replace(video='gone', timestamp=904)
    write_annotations(tmp_path / 'list.csv', [KEYFRAME, late])
    return AVADataset(
        str(tmp_path / 'list.csv'),
        pipeline=PIPELINE,
        data_prefix={'img': str(tmp_path)},
        filename_tmpl='img_{:05}.png',
        start_index=0,
        num_classes=3,
        timestamp_start=900,
        fps=10,
        test_mode=True,
    )


@pytest.fixture
def videos(dataset):
    scores = [[0.0, 0.2, 0.8]]
    samples = [
        detection(video, t, [FOUND], scores, 0.5) for video, t in (('a', 903), ('gone', 904))
    ]
    return read_videos(samples, read_sources(dataset))


def read(dataset, videos, frames, index=0):
    return KeyframeReader(dataset, frames, videos, CLASSES, HEIGHT).read(index)


def reds(image):
    return (image[..., 0] / 4).round().astype(int)


def test_sources_are_keyframes(dataset, tmp_path):
    first, second = read_sources(dataset)
    assert (first.name, second.name) == (f'{tmp_path}/a @ 903', f'{tmp_path}/gone @ 904')
    assert first.labels == (1, 2)
    assert first.keyframe.key == 'a,0903'
    assert first.keyframe.actions == [(1, 2)]
    np.testing.assert_allclose(first.keyframe.boxes, KEYFRAME.boxes)


def test_frames_are_those_of_the_clip(dataset, videos):
    image = read(dataset, videos, frames=5).image
    assert image.shape[0] == HEIGHT
    assert reds(image)[2, 2] == 30  # the keyframe: 3 seconds, 10 frames each
    side = (HEIGHT - GAP) // 2
    left = HEIGHT + GAP + side // 2
    tiles = [
        reds(image)[top, left + column * (side + GAP)]
        for top in (side // 2, HEIGHT - side // 2)
        for column in range(2)
    ]
    assert tiles == [26, 28, 30, 32]


def test_boxes_are_on_the_keyframe(dataset, videos):
    image = read(dataset, videos, frames=1).image
    assert image.shape == (HEIGHT, HEIGHT, 3)
    for colour, corners in ((ANNOTATED, KEYFRAME.boxes[0]), (PREDICTED, FOUND)):
        x1, y1, x2, y2 = (np.multiply(corners, HEIGHT)).round().astype(int)
        outline = np.zeros((HEIGHT, HEIGHT, 3), np.uint8)
        outline[y1 : y2 + 1, x1 : x2 + 1] = image[y1 : y2 + 1, x1 : x2 + 1]
        found, number = pixels(outline, colour)
        np.testing.assert_allclose(found, [x1, y1, x2, y2], atol=1.5)
        assert number > 0.9 * 2 * (x2 - x1 + y2 - y1)


def test_names_are_on_the_keyframe(dataset, videos):
    named = read(dataset, videos, frames=1).image
    nameless = KeyframeReader(dataset, 1, videos, ['', '', ''], HEIGHT).read(0).image
    assert (named != nameless).any()


def test_wrapped_data_sets_are_read(dataset, videos):
    wrapped = ConcatDataset([dataset])
    assert [source.name for source in read_sources(wrapped)] == [s.name for s in videos.sources]
    found, expected = (read(each, videos, frames=5).image for each in (wrapped, dataset))
    assert np.array_equal(found, expected)


def test_missing_videos_are_named(dataset, videos):
    strip = read(dataset, videos, frames=5, index=1)
    assert (strip.image, strip.problem) == (None, 'missing on disk')


def test_a_pipeline_that_samples_otherwise_is_refused(dataset, videos):
    dataset.pipeline.transforms.pop(0)
    with pytest.raises(ValueError, match=r"expected SampleAVAFrames, .*\['RawFrameDecode'\]"):
        KeyframeReader(dataset, 4, videos, CLASSES)


@pytest.mark.parametrize('number', range(4))
def test_two_rows_beside_a_large_frame(number):
    large = np.full((41, 30, 3), 10, np.uint8)
    frames = [np.full((20, 10 + i, 3), 100 + i, np.uint8) for i in range(number)]
    image = beside(large, frames)
    assert (image[:, :30] == large).all()
    shown = set(np.unique(image[:, 30:])) - {255}
    assert shown == {100 + i for i in range(number)}
    assert len(image) == 41
