# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Videos, moments and boxes are looked at before a network is built for them."""

import numpy as np
import pytest

from vared2_mmaction.apis.clips import Video, check_box, open_video, read_frame

from ..videos import HEIGHT, WIDTH, write_video

VIDEO = Video('video.mp4', 100, 50, 30, 10.0)


def test_a_video_is_looked_into(tmp_path):
    found = open_video(write_video(tmp_path / 'video.mp4', 20))
    assert (found.width, found.height, found.frames) == (WIDTH, HEIGHT, 20)
    assert found.fps == pytest.approx(12)
    assert found.size.tolist() == [WIDTH, HEIGHT, WIDTH, HEIGHT]
    columns = [
        np.flatnonzero(read_frame(found, number)[..., 0].max(0) > 150).mean() for number in (0, 10)
    ]
    assert columns[1] - columns[0] == pytest.approx(10, abs=1)  # a pixel a frame


@pytest.mark.parametrize(
    ('seconds', 'frame'), [(None, 15), (0, 0), (0.99, 9), (1, 10), (2.95, 29), (3, 29)]
)
def test_the_frame_at_a_time(seconds, frame):
    assert VIDEO.frame_at(seconds) == frame


@pytest.mark.parametrize('seconds', [-0.1, 3.1, float('nan')])
def test_times_outside_are_named(seconds):
    with pytest.raises(ValueError, match=f"TIMESTAMP={seconds:g}: expected 0 to 3 .*'video.mp4'"):
        VIDEO.frame_at(seconds)


def test_missing_videos_are_named():
    with pytest.raises(FileNotFoundError, match="VIDEO='gone.mp4': no such file"):
        open_video('gone.mp4')


def test_files_that_are_no_videos_are_named(tmp_path):
    (tmp_path / 'video.mp4').write_text('words')
    with pytest.raises(ValueError, match=r'video\.mp4.* cannot be opened'):
        open_video(tmp_path / 'video.mp4')


def test_whole_frames_are_boxes():
    check_box((0, 0, 100, 50), 'box', VIDEO)
