# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""J-HMDB-21 in the format of AVA.

Its annotation is read from either of two things:

- what its authors publish: the folder ``puppet_mask``, ``CLASS/VIDEO/puppet_mask.mat`` with an
  array ``part_mask`` of (H, W, T), non-zero on the person, and the folder ``splits``,
  ``CLASS_test_splitN.txt`` with lines ``VIDEO.avi 1`` (training) or ``2`` (test);
- ``JHMDB-GT.pkl``, which tube detectors share: a dictionary of ``labels`` (21 names), ``gttubes``
  (video -> label -> arrays (frames, 5) of frame, counted from 1, and x1, y1, x2, y2 in pixels),
  ``train_videos`` and ``test_videos`` (a list of videos for each of three splits) and
  ``resolution`` (video -> height, width). It was pickled by Python 2.

A frame is a keyframe, and its timestamp the number of the frame, counted from 1.
"""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from scipy.io import loadmat

from vared2_mmaction.checkpoints.arrays import stand_ins

from .ava_format import (
    Keyframe,
    write_annotations,
    write_excluded,
    write_label_map,
    write_proposals,
)

NUM_SPLITS = 3
PARTS = ('train', 'test')
_PICKLE_KEYS = ('labels', 'gttubes', 'train_videos', 'test_videos', 'resolution')


@dataclass(frozen=True)
class Jhmdb:
    """What an annotation says of one split.

    Attributes:
        labels: Names of the classes; the first is action 1.
        keyframes: Of ``train`` and ``test``.
    """

    labels: Sequence[str]
    keyframes: Mapping[str, Sequence[Keyframe]]


def convert(source: Jhmdb, out: Path, split: int, step: int = 1) -> dict[str, int]:
    """Write the annotation of a split in the format of AVA.

    Writes ``actions.pbtxt`` and, for train and test, ``jhmdb_PART_splitN.csv``,
    ``..._excluded_timestamps.csv`` (empty), and ``..._ground_truth_boxes.pkl``, the boxes of the
    annotation in the format of proposals.

    Args:
        source: The annotation.
        out: Folder to write to.
        split: Number of the split, in the names of the files.
        step: Take every ``step``-th frame of a training video; all of a test video are taken.

    Returns:
        Number of keyframes of train and test.
    """
    if step < 1:
        raise ValueError(f'--step {step}: expected at least 1')
    write_label_map(out / 'actions.pbtxt', source.labels)
    counts = {}
    for part in PARTS:
        frames = [
            f for f in source.keyframes[part] if part == 'test' or f.timestamp % step == 1 % step
        ]
        stem = f'jhmdb_{part}_split{split}'
        write_annotations(out / f'{stem}.csv', frames)
        write_excluded(out / f'{stem}_excluded_timestamps.csv', [])
        boxes = {f.key: np.pad(f.boxes, ((0, 0), (0, 1)), constant_values=1.0) for f in frames}
        write_proposals(out / f'{stem}_ground_truth_boxes.pkl', boxes)
        counts[part] = len(frames)
    return counts


def check_split(split: int) -> None:
    """Raise a ValueError if there is no such split."""
    if not 1 <= split <= NUM_SPLITS:
        raise ValueError(f'--split {split}: expected 1 to {NUM_SPLITS}')


def read_pickle(path: Path, split: int) -> Jhmdb:
    """Read ``JHMDB-GT.pkl``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is something else, or contains objects other than arrays.
    """
    check_split(split)
    with open(path, 'rb') as file:
        try:
            found = _ArrayUnpickler(file).load()
        except Exception as error:  # unpickling some other file may raise anything
            raise ValueError(f'{path}: cannot be read as JHMDB-GT.pkl: {error}') from error
    missing = [key for key in _PICKLE_KEYS if not isinstance(found, dict) or key not in found]
    if missing:
        raise ValueError(f'{path}: {missing[0]!r} is missing; expected {list(_PICKLE_KEYS)}')
    keyframes = {}
    for part in PARTS:
        videos = found[f'{part}_videos'][split - 1]
        keyframes[part] = [f for video in videos for f in _of_tubes(found, video)]
    return Jhmdb(list(found['labels']), keyframes)


class _ArrayUnpickler(pickle.Unpickler):
    """Refuses anything but arrays: a pickle may otherwise run whatever it likes."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding='latin1')
        self._allowed = stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[f'{module}.{name}']
        except KeyError:
            raise pickle.UnpicklingError(
                f'it contains {module}.{name}; expected arrays only'
            ) from None


def _of_tubes(found: Mapping[str, Any], video: str) -> Iterator[Keyframe]:
    height, width = found['resolution'][video]
    boxes: dict[int, list[tuple[np.ndarray, int]]] = {}
    for label, tubes in found['gttubes'][video].items():
        for tube in tubes:
            for frame, *box in np.asarray(tube, dtype=np.float64):
                relative = _relative(np.array(box), height, width)
                boxes.setdefault(int(frame), []).append((relative, int(label) + 1))
    for frame, entries in sorted(boxes.items()):
        actions = [[action] for _, action in entries]
        yield Keyframe(f'{video}.avi', frame, np.stack([b for b, _ in entries]), actions)


def read_published(puppet_mask: Path, splits: Path, split: int) -> Jhmdb:
    """Read what the authors publish.

    Args:
        puppet_mask: Folder of that name.
        splits: Folder of that name.
        split: 1, 2 or 3.

    Raises:
        FileNotFoundError: If there are no lists of that split, or a mask is missing.
        ValueError: If a list or a mask is not as expected.
    """
    check_split(split)
    suffix = f'_test_split{split}.txt'
    lists = sorted(splits.glob(f'*{suffix}'))
    if not lists:
        raise FileNotFoundError(f'{splits}: expected files CLASS{suffix}, found none')
    labels = [path.name.removesuffix(suffix) for path in lists]
    keyframes: dict[str, list[Keyframe]] = {part: [] for part in PARTS}
    for action, (label, path) in enumerate(zip(labels, lists, strict=True), 1):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            name, _, part = line.strip().rpartition(' ')
            if part not in ('1', '2') or not name.endswith('.avi'):
                raise ValueError(
                    f'{path}, line {number}: expected "VIDEO.avi 1" or 2, got {line!r}'
                )
            mask = puppet_mask / label / name.removesuffix('.avi') / 'puppet_mask.mat'
            keyframes[PARTS[int(part) - 1]] += _of_mask(mask, f'{label}/{name}', action)
    return Jhmdb(labels, keyframes)


def _of_mask(path: Path, video: str, action: int) -> Iterator[Keyframe]:
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such mask')
    found = loadmat(path)
    masks = found.get('part_mask')
    if masks is None or masks.ndim not in (2, 3):  # MATLAB drops the axis of a single frame
        raise ValueError(f'{path}: expected part_mask of (H, W, T), found {sorted(found)}')
    masks = masks.reshape(*masks.shape[:2], -1)
    for frame in range(masks.shape[2]):
        rows, columns = np.nonzero(masks[..., frame])
        if len(rows):
            box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            relative = _relative(box, *masks.shape[:2])
            yield Keyframe(video, frame + 1, relative[None], [[action]])


def _relative(box: np.ndarray, height: int, width: int) -> np.ndarray:
    return (box / (width, height, width, height)).clip(0, 1)
