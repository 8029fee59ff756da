# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Writes the moving-shapes data set: small mp4 videos and lists for MMAction2's ``VideoDataset``.

The set exists so that the whole road from video file to test score can be walked in minutes, with
no download. Some of its classes can be told from any single frame, and their clips often stand
still; the others can be told from the motion only.
"""

import json
import math
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from mmengine.fileio import put
from rich.progress import track

from .motions import MOTIONS
from .scenes import SHAPE_CLASS, background_moves, draw_repeats, render
from .videos import write_video

SPLITS = ('train', 'val', 'test')
META = 'meta.json'
# To be raised when the same arguments give other videos, lest an old folder be taken for a new one.
VERSION = 1

_UNFINISHED = 'meta.part.json'
_CHUNK = 16  # clips a worker takes at a time


@dataclass(frozen=True)
class MovingShapes:
    """What decides the videos.

    Attributes:
        train: Number of training videos.
        val: Number of validation videos.
        test: Number of test videos.
        size: Side of the square frame, pixels; a multiple of 32.
        frames: Frames a video.
        fps: Frames a second.
        seed: Of everything random.
        repeats: Most times that a clip shows its motion, from 1 on. Above 1, clips differ in how
            many of their frames are needed: those that repeat a motion often show it fast.
        classes: Class names, in label order; keys of ``motions.MOTIONS``.

    Raises:
        ValueError: An argument is out of range; the message names it as the command line does.
    """

    train: int = 1120
    val: int = 280
    test: int = 560
    size: int = 64
    frames: int = 32
    fps: int = 25
    seed: int = 0
    repeats: float = 1.0
    classes: tuple[str, ...] = tuple(MOTIONS)

    def __post_init__(self) -> None:
        for split in SPLITS:
            number = getattr(self, split)
            _expect(number >= 1, split, 'at least 1 video', number)
        # Decord pads the rows of other sizes, and then fails on some, such as 48 and 72.
        fits = self.size in range(32, 513, 32)
        _expect(fits, 'size', 'a multiple of 32, from 32 to 512', self.size)
        _expect(8 <= self.frames <= 1000, 'frames', '8 to 1000 frames', self.frames)
        _expect(1 <= self.fps <= 240, 'fps', '1 to 240 frames a second', self.fps)
        _expect(self.seed >= 0, 'seed', 'a number that is not negative', self.seed)
        _expect(1 <= self.repeats <= 100, 'repeats', '1 to 100 times', self.repeats)
        _expect(len(self.classes) >= 2, 'classes', 'at least two classes', self.classes)
        for name in self.classes:
            _expect(name in MOTIONS, 'classes', f'names out of {", ".join(MOTIONS)}', name)
            _expect(self.classes.count(name) == 1, 'classes', 'every name once', name)


@dataclass(frozen=True)
class Clip:
    """One video to be written.

    Attributes:
        path: Relative to the data set's folder.
        label: Index of the class.
        name: Class name.
        spawn_key: Index of the split, index in the split; with the set's seed, the clip's seed.
    """

    path: str
    label: int
    name: str
    spawn_key: tuple[int, int]

    def seed(self, entropy: int) -> np.random.SeedSequence:
        """The clip's own seed, so that no clip depends on which worker draws it, or when."""
        return np.random.SeedSequence(entropy, spawn_key=self.spawn_key)

    def facts(self, arguments: MovingShapes) -> dict[str, object]:
        """What ``meta.json`` tells about the clip."""
        entropy = arguments.seed
        moves = background_moves(self.seed(entropy))
        repeats = {}
        if arguments.repeats > 1:
            repeats['repeats'] = draw_repeats(self.seed(entropy), arguments.repeats)
        return dict(
            class_name=self.name,
            label=self.label,
            still=self.name.startswith(SHAPE_CLASS) and not moves,
            background='moving' if moves else 'still',
            seed=dict(entropy=entropy, spawn_key=self.spawn_key),
            **repeats,
        )


def make_moving_shapes(
    out: str | Path, arguments: MovingShapes | None = None, workers: int = 1, progress: bool = False
) -> int:
    """Writes the data set, or what is missing of it.

    Writes ``{train,val,test}/*.mp4``, then ``{train,val,test}.txt`` (lines of ``path label``) and
    ``classes.txt``, and ``meta.json`` last. The videos depend on ``arguments`` alone, not on
    ``workers`` or on what was there before.

    Args:
        out: Folder of the data set.
        arguments: What to write; the defaults if left out.
        workers: Processes.
        progress: Whether to show a progress bar.

    Returns:
        Number of videos written; 0 if the data set was complete.

    Raises:
        ValueError: ``workers`` is not positive, or ``out`` holds something else.
        OSError: A video cannot be written.
    """
    arguments = arguments or MovingShapes()
    _expect(workers >= 1, 'workers', 'at least 1 process', workers)
    out = Path(out)
    finished = _check_folder(out, arguments)
    clips = [clip for split in SPLITS for clip in plan(arguments, split)]
    missing = [clip for clip in clips if not (out / clip.path).is_file()]
    if finished and not missing and all((out / name).is_file() for name in _lists(arguments)):
        return 0
    for split in SPLITS:
        (out / split).mkdir(parents=True, exist_ok=True)
    if not finished:
        _write_json(out / _UNFINISHED, dict(arguments=_as_json(arguments)))
    done = _write_all(out, arguments, missing, workers)
    for _ in track(done, 'videos', total=len(missing), disable=not progress):
        pass
    for name, lines in _lists(arguments).items():
        put(''.join(f'{line}\n' for line in lines).encode(), str(out / name))
    videos = {clip.path: clip.facts(arguments) for clip in clips}
    _write_json(out / META, dict(arguments=_as_json(arguments), videos=videos))
    (out / _UNFINISHED).unlink(missing_ok=True)
    return len(missing)


def plan(arguments: MovingShapes, split: str) -> list[Clip]:
    """The clips of one split. Classes take turns, so their numbers differ by one at most."""
    clips = []
    for index in range(getattr(arguments, split)):
        label = index % len(arguments.classes)
        name = arguments.classes[label]
        path = f'{split}/{index:05d}_{name}.mp4'
        clips.append(Clip(path, label, name, (SPLITS.index(split), index)))
    return clips


def _expect(fulfilled: bool, option: str, expected: str, got: object) -> None:
    if not fulfilled:
        raise ValueError(f'--{option}: expected {expected}, got {got!r}')


def _check_folder(out: Path, arguments: MovingShapes) -> bool:
    """Whether ``out`` was finished with these arguments; ValueError if it holds anything else."""
    if out.exists() and not out.is_dir():
        raise ValueError(f'OUT: expected a folder, got the file {out}')
    for name in (META, _UNFINISHED):
        if (out / name).is_file():
            _compare(out, json.loads((out / name).read_text()).get('arguments', {}), arguments)
            return name == META
    if out.exists() and any(out.iterdir()):
        raise ValueError(f'OUT: expected a new or empty folder or a moving-shapes set, got {out}')
    return False


def _compare(out: Path, there: dict[str, object], arguments: MovingShapes) -> None:
    wanted = _as_json(arguments)
    there = {'repeats': 1.0, **there}  # sets from before there was a choice
    differences = [
        f'{key} {there.get(key)!r} (asked for: {wanted[key]!r})'
        for key in wanted
        if there.get(key) != wanted[key]
    ]
    if differences:
        raise ValueError(
            f'OUT: {out} was made with other arguments: {", ".join(differences)}. '
            'Choose another folder, or remove this one'
        )


def _as_json(arguments: MovingShapes) -> dict[str, object]:
    return dict(version=VERSION, **asdict(arguments)) | dict(classes=list(arguments.classes))


def _lists(arguments: MovingShapes) -> dict[str, list[str]]:
    """The text files, by name, as lists of lines."""
    lists = {
        f'{split}.txt': [f'{clip.path} {clip.label}' for clip in plan(arguments, split)]
        for split in SPLITS
    }
    return lists | {'classes.txt': list(arguments.classes)}


def _write_all(
    out: Path, arguments: MovingShapes, clips: list[Clip], workers: int
) -> Iterator[None]:
    """Writes ``clips`` and yields once for every one written."""
    if workers == 1 or len(clips) <= _CHUNK:
        for clip in clips:
            _write_video(out, arguments, clip)
            yield
        return
    # Forked where that exists: a fresh process would import all of PyTorch, only to draw.
    method = 'fork' if 'fork' in multiprocessing.get_all_start_methods() else None
    context = multiprocessing.get_context(method)
    chunks = [clips[start : start + _CHUNK] for start in range(0, len(clips), _CHUNK)]
    workers = min(workers, math.ceil(len(clips) / _CHUNK))
    with ProcessPoolExecutor(
        workers, context, initializer=cv2.setNumThreads, initargs=(0,)
    ) as pool:
        futures = [pool.submit(_write_chunk, out, arguments, chunk) for chunk in chunks]
        try:
            for future in as_completed(futures):
                yield from [None] * future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_chunk(out: Path, arguments: MovingShapes, clips: list[Clip]) -> int:
    for clip in clips:
        _write_video(out, arguments, clip)
    return len(clips)


def _write_video(out: Path, arguments: MovingShapes, clip: Clip) -> None:
    frames = render(
        clip.name, clip.seed(arguments.seed), arguments.frames, arguments.size, arguments.repeats
    )
    write_video(out / clip.path, frames, arguments.fps)


def _write_json(path: Path, content: object) -> None:
    put(f'{json.dumps(content, indent=1)}\n'.encode(), str(path))
