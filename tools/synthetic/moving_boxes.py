# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Writes the moving-boxes data set: videos for action detection, annotated as AVA is.

One or two shapes a video, each with a motion and a shape of its own; both may be actions, so that
a box has one or two labels. The middle frame of a video is its keyframe.
"""

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from rich.progress import track

from annotations.ava_format import (
    Keyframe,
    write_annotations,
    write_excluded,
    write_label_map,
    write_proposals,
)

from . import scenes
from .motions import MOTIONS, Pose, Track
from .videos import write_video

SPLITS = ('train', 'val', 'test')
META = 'annotations/meta.json'
# To be raised when the same arguments give another set.
VERSION = 1

# Lengths are shares of the frame's side.
PLACE = (0.2, 0.8)  # of a subject in the keyframe
RADIUS = (0.11, 0.16)
SHAPE_IS_ACTION = 0.5
STAYS = 0.15
TOO_CLOSE = 0.1  # overlap of boxes, intersection over union, from which on a keyframe is excluded
PROPOSAL_JITTER = 0.04  # deviation of a proposal's sides, of the box's size
FALSE_PROPOSALS = 0.1  # videos with a proposal where there is nothing
SHAPE_ACTIONS = tuple(name for name in MOTIONS if name.startswith(scenes.SHAPE_CLASS))
MOTION_ACTIONS = ('moves_left', 'moves_right_slowly', 'moves_right_fast', 'grows', 'shrinks')
ACTIONS = (*SHAPE_ACTIONS, *MOTION_ACTIONS)
"""In label order; the first is number 1."""


@dataclass(frozen=True)
class MovingBoxes:
    """What decides the set.

    Attributes:
        train: Number of training videos.
        val: Number of validation videos.
        test: Number of test videos.
        size: Side of the square frame, pixels; a multiple of 32.
        frames: Frames a video.
        fps: Frames a second.
        seed: Of everything random.

    Raises:
        ValueError: An argument is out of range; the message names it as the command line does.
    """

    train: int = 1600
    val: int = 200
    test: int = 600
    size: int = 64
    frames: int = 24
    fps: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            *((split, 1, 10**6) for split in SPLITS),
            ('size', 32, 512),
            ('frames', 8, 1000),
            ('fps', 1, 240),
            ('seed', 0, 2**63),
        ):
            if not low <= (found := getattr(self, name)) <= high:
                raise ValueError(f'--{name}: expected {low} to {high}, got {found}')
        if self.size % 32:  # decord pads the rows of other sizes, and then fails on some
            raise ValueError(f'--size: expected a multiple of 32, got {self.size}')


class Video(NamedTuple):
    """A rendered video and what is in its keyframe."""

    frames: np.ndarray
    """(T, size, size, 3), uint8, in OpenCV's colour order."""
    keyframe: Keyframe
    proposals: np.ndarray
    """(boxes, 5): a box and its score, as a detector of things might find them."""
    excluded: bool
    """Whether one subject hides too much of another in the keyframe."""


def make_moving_boxes(
    out: Path, arguments: MovingBoxes | None = None, workers: int = 1, progress: bool = False
) -> int:
    """Write the data set; what it holds depends on ``arguments`` alone.

    Writes ``{train,val,test}/*.mp4`` and, into ``annotations``, for each split ``SPLIT.csv``,
    ``SPLIT_excluded_timestamps.csv`` and ``SPLIT_proposals.pkl``, and ``actions.pbtxt``; last
    ``meta.json``. A timestamp is the number of a frame, counted from 1.

    Args:
        out: Folder of the data set.
        arguments: What to write; the defaults if left out.
        workers: Processes.
        progress: Whether to show a progress bar.

    Returns:
        Number of videos written; 0 if the set was complete.

    Raises:
        ValueError: ``workers`` is not positive, or ``out`` holds something else.
        OSError: A file cannot be written.
    """
    arguments = arguments or MovingBoxes()
    if workers < 1:
        raise ValueError(f'--workers: expected at least 1, got {workers}')
    meta = dict(version=VERSION, **asdict(arguments))
    if _is_complete(out, meta):
        return 0
    jobs = [(out, arguments, s, i) for s in SPLITS for i in range(getattr(arguments, s))]
    for split in SPLITS:
        (out / split).mkdir(parents=True, exist_ok=True)
    # Forked where that exists: a fresh process would import all of PyTorch, only to draw.
    method = 'fork' if 'fork' in multiprocessing.get_all_start_methods() else None
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context(method), initializer=cv2.setNumThreads, initargs=(0,)
    ) as pool:
        written = pool.map(_write_one, jobs, chunksize=16)
        bar = track(written, 'videos', total=len(jobs), disable=not progress)
        found = list(zip((split for _, _, split, _ in jobs), bar, strict=True))
    for split in SPLITS:
        _write_lists(out / 'annotations', split, [video for name, video in found if name == split])
    write_label_map(out / 'annotations' / 'actions.pbtxt', ACTIONS)
    (out / META).write_text(json.dumps(meta, indent=1) + '\n')
    return len(jobs)


def _is_complete(out: Path, meta: dict[str, Any]) -> bool:
    if (out / META).is_file():
        there = json.loads((out / META).read_text())
        if there != meta:
            raise ValueError(
                f'OUT: {out} was made with other arguments, {there}; asked for {meta}. Choose '
                'another folder, or remove this one'
            )
        return True
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if names - {*SPLITS, 'annotations'} or (out.exists() and not out.is_dir()):
        raise ValueError(f'OUT: expected a new folder or a moving-boxes set, got {out}')
    return False


def _write_one(job: tuple[Path, MovingBoxes, str, int]) -> Video:
    out, arguments, split, index = job
    video = render(arguments, split, index)
    write_video(out / video.keyframe.video, video.frames, arguments.fps)
    return video._replace(frames=video.frames[:0])  # the others go back to the main process


def _write_lists(folder: Path, split: str, videos: list[Video]) -> None:
    shown = [video.keyframe for video in videos if not video.excluded]
    write_annotations(folder / f'{split}.csv', shown)
    excluded = [video.keyframe for video in videos if video.excluded]
    write_excluded(folder / f'{split}_excluded_timestamps.csv', excluded)
    write_proposals(
        folder / f'{split}_proposals.pkl',
        {video.keyframe.key: video.proposals for video in videos},
    )


def render(arguments: MovingBoxes, split: str, index: int) -> Video:
    """Render one video."""
    rng = np.random.default_rng((arguments.seed, SPLITS.index(split), index))
    background, grey = scenes.draw_background(rng, arguments.size)
    subjects = [_draw_subject(rng, grey, arguments) for _ in range(rng.integers(1, 3))]
    frames = np.repeat(background[None], arguments.frames, 0)
    for t, frame in enumerate(frames):
        for shape, path, _ in subjects:
            scenes.paint_at(frame, shape, path, t)
    frames += scenes.NOISE * rng.standard_normal((*frames.shape[:3], 1), np.float32)
    middle = arguments.frames // 2
    boxes = np.stack([_box(path, middle, arguments.size) for _, path, _ in subjects])
    actions = [actions for _, _, actions in subjects]
    keyframe = Keyframe(f'{split}/{index:05d}.mp4', middle + 1, boxes, actions)
    excluded = len(boxes) == 2 and _overlap(*boxes) > TOO_CLOSE
    pixels = np.clip(np.rint(frames), 0, 255).astype(np.uint8)
    return Video(pixels, keyframe, _propose(rng, boxes), bool(excluded))


def _draw_subject(
    rng: np.random.Generator, grey: float, arguments: MovingBoxes
) -> tuple[np.ndarray, Track, list[int]]:
    """A shape, its way through the video, and its actions."""
    motion = 'shows' if rng.random() < STAYS else str(rng.choice(MOTION_ACTIONS))
    actions = [] if motion == 'shows' else [ACTIONS.index(motion) + 1]
    shape = str(rng.choice(scenes.SUBJECTS))
    if not actions or rng.random() < SHAPE_IS_ACTION:  # a box without an action has no label
        name = str(rng.choice(SHAPE_ACTIONS))
        actions.append(ACTIONS.index(name) + 1)
        shape = name.removeprefix(scenes.SHAPE_CLASS)
    size = arguments.size
    x, y = rng.uniform(*PLACE, 2) * size
    pose = Pose(x, y, rng.uniform(0.0, 360.0), rng.uniform(*RADIUS) * size)
    name = motion if motion in MOTIONS else SHAPE_ACTIONS[0]
    (path,) = MOTIONS[name](rng, pose, arguments.frames, size)
    # The pose is that of the keyframe: there, and not at the start, a subject is well inside.
    middle = arguments.frames // 2
    path = replace(
        path,
        x=path.x - path.x[middle] + pose.x,
        y=path.y - path.y[middle] + pose.y,
        radius=path.radius * pose.radius / path.radius[middle],
    )
    return scenes.draw_shape(rng, shape, grey), path, actions


def _box(path: Track, t: int, size: int) -> np.ndarray:
    x, y, radius = path.x[t], path.y[t], path.radius[t]
    # Pixel centres are at whole numbers.
    corners = np.array([x - radius, y - radius, x + radius, y + radius]) + 0.5
    return (corners / size).clip(0, 1)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = sides.clip(0).prod()
    return float(common / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common))


def _propose(rng: np.random.Generator, boxes: np.ndarray) -> np.ndarray:
    sizes = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    found = boxes + PROPOSAL_JITTER * sizes * rng.standard_normal(boxes.shape)
    scores = rng.uniform(0.9, 1.0, len(boxes))
    if rng.random() < FALSE_PROPOSALS:
        corner, side = rng.uniform(0.0, 0.7, 2), rng.uniform(0.2, 0.3)
        found = np.concatenate([found, [[*corner, *(corner + side)]]])
        scores = np.append(scores, rng.uniform(0.5, 1.0))
    return np.column_stack([found.clip(0, 1), scores]).astype(np.float32)
