# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Writes annotations in the format of AVA, which MMAction2's ``AVADataset`` and ``AVAMetric`` read.

Actions are numbered from 1: class 0 stands for the background. Files are whole, or as before.
"""

import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine.fileio import put


class Keyframe(NamedTuple):
    """An annotated frame of a video."""

    video: str
    """Path of the video, relative to the data set's folder of videos; holds no comma."""
    timestamp: int
    boxes: np.ndarray
    """(boxes, 4): x1, y1, x2, y2 as shares of width and height, in [0, 1]."""
    actions: Sequence[Sequence[int]]
    """Actions of each box, numbered from 1."""

    @property
    def key(self) -> str:
        """Name of the frame in a file of proposals."""
        return f'{self.video},{self.timestamp:04d}'

    def lines(self) -> list[str]:
        """Lines of the annotation file, one for each action of each box."""
        start = f'{self.video},{self.timestamp}'
        return [
            f'{start},{",".join(f"{x:.4f}" for x in box)},{action},{entity}\n'
            for entity, (box, actions) in enumerate(zip(self.boxes, self.actions, strict=True))
            for action in actions
        ]


def write_annotations(path: Path, keyframes: Iterable[Keyframe]) -> None:
    """Write ``video,timestamp,x1,y1,x2,y2,action,entity``, one line for each action of each box.

    Raises:
        ValueError: If a video's name holds a comma, or a box leaves the frame or has no area.
    """
    lines: list[str] = []
    for frame in keyframes:
        if ',' in frame.video:
            raise ValueError(f'{frame.video!r}: the name of a video must not hold a comma')
        for box in frame.boxes:
            x1, y1, x2, y2 = box
            if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
                raise ValueError(f'{frame.key}: expected 0 <= x1 < x2 <= 1, same of y, got {box}')
        lines += frame.lines()
    put(''.join(lines).encode(), str(path))


def write_excluded(path: Path, keyframes: Iterable[Keyframe]) -> None:
    """Write ``video,timestamp`` of frames that neither training nor evaluation may use."""
    text = ''.join(f'{frame.video},{frame.timestamp:04d}\n' for frame in keyframes)
    put(text.encode(), str(path))


def write_label_map(path: Path, names: Sequence[str]) -> None:
    """Write the names of the actions, of which the first is number 1."""
    items = (
        f'item {{\n  name: "{name}"\n  id: {number}\n}}\n' for number, name in enumerate(names, 1)
    )
    put(''.join(items).encode(), str(path))


def write_proposals(path: Path, proposals: dict[str, np.ndarray]) -> None:
    """Write proposed boxes by :attr:`Keyframe.key`, (boxes, 5): a box and its score."""
    put(pickle.dumps(proposals, protocol=4), str(path))
