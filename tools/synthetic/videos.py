# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Writes video files."""

import os
from pathlib import Path

import cv2
import numpy as np


def write_video(path: Path, frames: np.ndarray, fps: int) -> None:
    """Write frames as an mp4 file; it is there as a whole or not at all.

    Args:
        path: File to write.
        frames: In OpenCV's colour order, uint8 of shape (T, H, W, 3).
        fps: Frames a second.

    Raises:
        OSError: If the video cannot be written.
    """
    part = path.with_name(f'{path.stem}.part.mp4')
    codec = cv2.VideoWriter.fourcc(*'mp4v')
    writer = cv2.VideoWriter(str(part), codec, float(fps), frames.shape[2:0:-1])
    if not writer.isOpened():
        raise OSError(f'OpenCV {cv2.__version__} cannot write {part} with the codec mp4v')
    for frame in frames:
        writer.write(frame)
    writer.release()
    # OpenCV does not report failed writes, of a full disk for example.
    if not part.is_file() or part.stat().st_size == 0:
        raise OSError(f'OpenCV wrote nothing to {part}')
    os.replace(part, path)
