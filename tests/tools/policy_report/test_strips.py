# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Strips show evenly spaced frames of files and of folders, or say why not."""

import cv2
import numpy as np
import pytest
from mmaction.datasets import RawframeDataset, VideoDataset
from mmengine.dataset import ConcatDataset, RepeatDataset

from policy_report.boxes import side_by_side
from policy_report.strips import StripReader

SIZE = 24
FRAMES = 12


def steps(*names):
    options = {'SampleFrames': {'clip_len': 2, 'test_mode': True}, 'CenterCrop': {'crop_size': 8}}
    return [{'type': f'mmaction.{name}', **options.get(name, {})} for name in names]


VIDEO = steps('DecordInit', 'SampleFrames', 'DecordDecode', 'CenterCrop')
RAW = steps('SampleFrames', 'RawFrameDecode', 'CenterCrop')


def listed(folder, lines, dataset, pipeline, **options):
    (folder / 'list.txt').write_text(''.join(f'{line}\n' for line in lines))
    return dataset(ann_file=str(folder / 'list.txt'), pipeline=pipeline, test_mode=True, **options)


@pytest.fixture
def raw(tmp_path):
    """Folders whose frame number t, from 1 on, has colour (10 t, 0, 200)."""
    for name in ('whole', 'short'):
        (tmp_path / name).mkdir()
    for t in range(1, FRAMES + 1):
        image = np.full((SIZE, 2 * SIZE, 3), (200, 0, 10 * t), np.uint8)  # OpenCV has blue first
        cv2.imwrite(str(tmp_path / 'whole' / f'img_{t:05}.png'), image)
    lines = [f'whole {FRAMES} 0', 'whole 2 0', f'short {FRAMES} 1', f'absent {FRAMES} 1']
    options = {'data_prefix': {'img': str(tmp_path)}, 'filename_tmpl': 'img_{:05}.png'}
    return listed(tmp_path, lines, RawframeDataset, RAW, **options)


def colours(strip, number):
    """Colour of the middle of each frame of a strip."""
    width = (strip.image.shape[1] + 3) // number
    return [strip.image[5, i * width + width // 2 - 2].tolist() for i in range(number)]


def test_frames_of_a_folder(raw):
    strip = StripReader(raw, frames=4, height=SIZE // 2).read(0)
    assert strip.image.shape == (SIZE // 2, 4 * SIZE + 3 * 3, 3)
    # The middles of four equal parts: 1.5, 4.5, 7.5 and 10.5 frames after the first, which is 1.
    assert colours(strip, 4) == [[10 * t, 0, 200] for t in (2, 5, 8, 11)]
    assert strip.problem == ''


def test_a_short_video_shows_all_it_has(raw):
    strip = StripReader(raw, frames=4, height=SIZE).read(1)
    assert colours(strip, 2) == [[10, 0, 200], [20, 0, 200]]
    assert strip.image.shape[1] == 2 * 2 * SIZE + 3


@pytest.mark.parametrize('index', [2, 3])
def test_a_missing_frame_or_folder_is_said(raw, index):
    strip = StripReader(raw, frames=4).read(index)
    assert strip.image is None
    assert strip.problem == 'missing on disk'


def test_files_are_read_like_the_pipeline_reads_them(videos, tmp_path):
    (tmp_path / 'broken.mp4').write_bytes(b'no video')
    paths = [videos / 'test0.mp4', tmp_path / 'absent.mp4', tmp_path / 'broken.mp4']
    dataset = listed(tmp_path, [f'{p} 0' for p in paths], VideoDataset, VIDEO)
    reader = StripReader(dataset, frames=3, height=48)
    shown, absent, broken = (reader.read(index) for index in range(3))
    assert shown.image.shape == (48, 3 * 64 + 2 * 3, 3)  # not cropped
    capture = cv2.VideoCapture(str(paths[0]))
    frames = [capture.read()[1][..., ::-1] for _ in range(13)]
    expected = side_by_side([frames[t] for t in (2, 6, 10)], 48)
    assert np.abs(shown.image.astype(int) - expected).mean() < 3  # decoders round differently
    assert (absent.image, absent.problem) == (None, 'missing on disk')
    assert broken.image is None
    assert 'cannot be read' in broken.problem
    assert 'broken.mp4' in broken.problem


def test_wrappers_of_data_sets_and_steps_change_nothing(videos, tmp_path):
    lines = [f'{videos}/test0.mp4 0']
    plain = StripReader(listed(tmp_path, lines, VideoDataset, VIDEO), frames=3).read(0)
    once = [{'type': 'mmaction.DecodeOnce', 'transforms': VIDEO[:3]}, VIDEO[3]]
    dataset = listed(tmp_path, lines, VideoDataset, once)
    for wrapped in (dataset, ConcatDataset([dataset]), RepeatDataset(dataset, 2)):
        assert np.array_equal(StripReader(wrapped, frames=3).read(0).image, plain.image)


def test_a_pipeline_without_decoder_is_named(videos, tmp_path):
    dataset = listed(tmp_path, ['a.mp4 0'], VideoDataset, steps('DecordInit', 'SampleFrames'))
    with pytest.raises(ValueError, match=r"expected a step that decodes .*found \['DecordInit'"):
        StripReader(dataset, frames=3)


@pytest.mark.parametrize('channels', [(), (1,), (2,)])
def test_grey_frames_and_flow_are_shown(channels):
    frame = np.zeros((6, 4, *channels), np.uint8)
    frame[..., :1] = 90
    image = side_by_side([frame, frame], 6)
    assert image.shape == (6, 2 * 4 + 3, 3)
    grey = frame if not channels else frame[..., 0]
    assert np.array_equal(image[:, :4], np.stack([grey] * 3, -1))
