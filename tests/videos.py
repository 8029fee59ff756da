# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""A tiny set of video files: a square that moves to the right (0) or down (1)."""

import cv2
import numpy as np

WIDTH, HEIGHT = 64, 48  # decord fails on some widths up to 72, 48 and 72 among them
# Split: number of frames of each of its videos.
SPLITS = {'train': (12, 14, 16, 18, 20, 12), 'val': (12, 16), 'test': (13, 16, 20)}


def write_videos(folder):
    """Writes the videos, and a list "video label" for each split; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, lengths in SPLITS.items():
        names = [f'{split}{i}.mp4' for i in range(len(lengths))]
        for i, (name, frames) in enumerate(zip(names, lengths, strict=True)):
            write_video(folder / name, frames, label=i % 2)
        lines = [f'{name} {i % 2}\n' for i, name in enumerate(names)]
        (folder / f'{split}.txt').write_text(''.join(lines))
    return folder


def write_video(path, frames, label=0, size=(WIDTH, HEIGHT), codec='mp4v'):
    """Writes one video; size is width and height."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 12, size)
    assert writer.isOpened(), f'{path} cannot be written: OpenCV has no {codec} encoder'
    for t in range(frames):
        image = np.full((*size[::-1], 3), 60, np.uint8)
        x, y = (4 + t, 14) if label == 0 else (18, 2 + t)
        image[y : y + 10, x : x + 10] = (40, 200, 240)
        writer.write(image)
    writer.release()
    return str(path)
