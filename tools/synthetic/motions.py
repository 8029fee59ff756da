# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What the subject of a moving-shapes clip does: one function a kind of motion.

Every motion starts from the pose the scene chose, whatever its class. The first frame of a clip
therefore says nothing about its class: it has to be seen moving.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

# Distances are shares of the frame's side, angles degrees. Slow and fast do not overlap: no clip is
# ambiguous.
SLOW = (0.14, 0.24)
FAST = (0.36, 0.56)
ANY_SPEED = (0.18, 0.50)
HEADING_JITTER = 20.0
TURN = (100.0, 200.0)
GROWTH = (1.5, 2.0)


@dataclass(frozen=True)
class Pose:
    """Where the subject is in the first frame.

    Attributes:
        x: Centre, pixels from the left.
        y: Centre, pixels from the top.
        angle: Degrees, clockwise as seen.
        radius: Pixels.
    """

    x: float
    y: float
    angle: float
    radius: float


@dataclass(frozen=True)
class Track:
    """Where the subject is in every frame: arrays of shape ``(T,)``, units as in :class:`Pose`."""

    x: np.ndarray
    y: np.ndarray
    angle: np.ndarray
    radius: np.ndarray
    visible: np.ndarray

    @classmethod
    def at_rest(cls, pose: Pose, num_frames: int) -> 'Track':
        """The subject keeps ``pose`` through all frames."""
        one = np.ones(num_frames)
        return cls(one * pose.x, one * pose.y, one * pose.angle, one * pose.radius, one > 0)

    def at(self, times: np.ndarray) -> 'Track':
        """The track at other times, ``(T,)`` in frames from the first one, not only whole ones."""
        frames = np.arange(len(self.x))
        x, y, angle, radius = (
            np.interp(times, frames, values) for values in (self.x, self.y, self.angle, self.radius)
        )
        return Track(x, y, angle, radius, self.visible[np.rint(times).astype(int)])


Motion = Callable[[np.random.Generator, Pose, int, int], list[Track]]


def _progress(num_frames: int, begin: float, end: float) -> np.ndarray:
    """From 0 to 1 between the shares ``begin`` and ``end`` of the clip; of shape ``(T,)``."""
    time = np.linspace(0.0, 1.0, num_frames)
    return np.clip((time - begin) / (end - begin), 0.0, 1.0)


def _whole_clip(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """Progress of a motion that takes nearly the whole clip, with a random phase."""
    return _progress(num_frames, rng.uniform(0.0, 0.15), rng.uniform(0.85, 1.0))


def _moved(track: Track, progress: np.ndarray, distance: float, heading: float) -> Track:
    step = distance * progress
    heading = np.deg2rad(heading)
    return replace(track, x=track.x + step * np.cos(heading), y=track.y + step * np.sin(heading))


def _turned(track: Track, progress: np.ndarray, degrees: float) -> Track:
    return replace(track, angle=track.angle + degrees * progress)


def _move(heading: float, distance: tuple[float, float]) -> Motion:
    def motion(rng: np.random.Generator, pose: Pose, num_frames: int, size: int) -> list[Track]:
        progress = _whole_clip(rng, num_frames)
        jitter = rng.uniform(-HEADING_JITTER, HEADING_JITTER)
        track = Track.at_rest(pose, num_frames)
        return [_moved(track, progress, rng.uniform(*distance) * size, heading + jitter)]

    return motion


def _turn(sign: int) -> Motion:
    def motion(rng: np.random.Generator, pose: Pose, num_frames: int, size: int) -> list[Track]:
        progress = _whole_clip(rng, num_frames)
        return [_turned(Track.at_rest(pose, num_frames), progress, sign * rng.uniform(*TURN))]

    return motion


def _resize(sign: int) -> Motion:
    def motion(rng: np.random.Generator, pose: Pose, num_frames: int, size: int) -> list[Track]:
        progress = _whole_clip(rng, num_frames)
        track = Track.at_rest(pose, num_frames)
        return [replace(track, radius=track.radius * rng.uniform(*GROWTH) ** (sign * progress))]

    return motion


def _move_and_turn(move_first: bool) -> Motion:
    def motion(rng: np.random.Generator, pose: Pose, num_frames: int, size: int) -> list[Track]:
        middle = rng.uniform(0.42, 0.58)
        halves = _progress(num_frames, 0.0, middle), _progress(num_frames, middle, 1.0)
        moving, turning = halves if move_first else halves[::-1]
        track = Track.at_rest(pose, num_frames)
        track = _moved(track, moving, rng.uniform(0.2, 0.4) * size, rng.uniform(0.0, 360.0))
        return [_turned(track, turning, rng.choice((-1, 1)) * rng.uniform(*TURN))]

    return motion


def _appear(left_first: bool) -> Motion:
    def motion(rng: np.random.Generator, pose: Pose, num_frames: int, size: int) -> list[Track]:
        time = np.linspace(0.0, 1.0, num_frames)
        first, second = time > rng.uniform(0.1, 0.35), time > rng.uniform(0.55, 0.85)
        left, right = (first, second) if left_first else (second, first)
        return [
            replace(
                Track.at_rest(replace(pose, x=rng.uniform(*side) * size), num_frames),
                visible=visible,
            )
            for side, visible in (((0.15, 0.32), left), ((0.68, 0.85), right))
        ]

    return motion


def _stay(rng: np.random.Generator, pose: Pose, num_frames: int, size: int) -> list[Track]:
    return [Track.at_rest(pose, num_frames)]


#: Class name -> motion, in label order. Those that start with ``shows`` are told by the shape, in
#: any frame; the others by the motion.
MOTIONS: dict[str, Motion] = {
    'shows_star': _stay,
    'shows_cross': _stay,
    'shows_ring': _stay,
    'moves_left': _move(180.0, ANY_SPEED),
    'moves_right_slowly': _move(0.0, SLOW),
    'moves_right_fast': _move(0.0, FAST),
    'rotates_clockwise': _turn(+1),
    'rotates_counterclockwise': _turn(-1),
    'grows': _resize(+1),
    'shrinks': _resize(-1),
    'moves_then_rotates': _move_and_turn(move_first=True),
    'rotates_then_moves': _move_and_turn(move_first=False),
    'appears_left_then_right': _appear(left_first=True),
    'appears_right_then_left': _appear(left_first=False),
}
