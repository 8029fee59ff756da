# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""A moment of a video and boxes in it, checked before a network is built for them."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from mmaction.datasets.transforms import DecordDecode, DecordInit

from .inference import check_video


class Video(NamedTuple):
    """A video file; ``fps`` is frames a second."""

    path: str
    width: int
    height: int
    frames: int
    fps: float

    @property
    def size(self) -> np.ndarray:
        """What turns shares of width and height into pixels of x1, y1, x2, y2, (4,)."""
        return np.array([self.width, self.height] * 2)

    def frame_at(self, timestamp: float | None) -> int:
        """Number of the frame at a time in seconds, or in the middle; a ValueError outside."""
        if timestamp is None:
            return self.frames // 2
        length = self.frames / self.fps
        if not 0 <= timestamp <= length:
            raise ValueError(
                f'TIMESTAMP={timestamp:g}: expected 0 to {length:g} seconds, the length of '
                f'{self.path!r}'
            )
        return min(int(timestamp * self.fps), self.frames - 1)


def open_video(path: str | os.PathLike) -> Video:
    """Look into a video.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be decoded.
    """
    found = _decode(os.fspath(path), 0)
    height, width = found['original_shape']
    return Video(os.fspath(path), width, height, found['total_frames'], found['avg_fps'])


def read_frame(video: Video, number: int) -> np.ndarray:
    """A frame of a video, RGB, (height, width, 3), bytes; a ValueError if it cannot be decoded."""
    return _decode(video.path, number)['imgs'][0]


def _decode(path: str, number: int) -> dict[str, Any]:
    check_video(path)
    try:
        found = DecordInit()({'filename': path})
        return DecordDecode()({**found, 'frame_inds': np.array([number])})
    except RuntimeError as error:  # names the video
        raise ValueError(str(error)) from error


def check_box(box: Sequence[float] | np.ndarray, where: str, video: Video) -> None:
    """Refuse a box x1, y1, x2, y2 of pixels without an area, or outside the frame, with a
    ValueError that says where it stands."""
    found = ','.join(f'{number:g}' for number in box)
    if len(box) != 4:
        raise ValueError(f'{where}: expected x1,y1,x2,y2, found {found}')
    x1, y1, x2, y2 = box
    if not (0 <= x1 < x2 <= video.width and 0 <= y1 < y2 <= video.height):
        raise ValueError(
            f'{where}: expected 0 <= x1 < x2 <= {video.width} and 0 <= y1 < y2 <= {video.height}, '
            f'pixels of the frame, found {found}'
        )
