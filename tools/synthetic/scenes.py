# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Renders the clips of the moving-shapes data set: textured shapes on cluttered backgrounds.

The frame wraps around: what leaves it on one side comes back on the other.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from .motions import MOTIONS, Pose, Track

SHAPE_CLASS = 'shows_'
SUBJECTS = ('disc', 'square', 'triangle')
SHAPES = (*SUBJECTS, 'star', 'cross', 'ring')

# How hard the data set is. Grey values are of 0..255, lengths are shares of the frame's side,
# speeds such shares per clip.
RADIUS = (0.18, 0.25)
START = (0.3, 0.7)
CLUTTER_RADIUS = (0.03, 0.07)
NUM_CLUTTER = (0, 3)
CONTRAST = (35.0, 80.0)
TEXTURE_CONTRAST = (12.0, 26.0)
BACKGROUND_CONTRAST = (3.0, 12.0)
BACKGROUND_SPEED = (0.05, 0.2)
BACKGROUND_MOVES = 0.3
NOISE = 4.0

_PATCH = 64  # side of the square a shape is painted on, pixels
_PATCH_RADIUS = 28.0


@dataclass(frozen=True)
class Scene:
    """What a clip shows before anything moves.

    Attributes:
        background: Texture and clutter, periodic, float32 of shape ``(size, size, 3)``.
        subject: Colour times opacity, and opacity, float32 of shape ``(64, 64, 4)``.
        pose: The subject in the first frame.
    """

    background: np.ndarray
    subject: np.ndarray
    pose: Pose


def background_moves(seed: np.random.SeedSequence) -> bool:
    """Whether the background of the clip drawn from ``seed`` drifts."""
    return bool(_streams(seed)[0].random() < BACKGROUND_MOVES)


def draw_repeats(seed: np.random.SeedSequence, most: float) -> float:
    """How often the clip drawn from ``seed`` shows its motion.

    Args:
        seed: Of the clip.
        most: Largest number; numbers are spread evenly on a logarithmic scale from 1 to there.
    """
    return most ** _streams(seed)[4].uniform()


def render(
    name: str, seed: np.random.SeedSequence, num_frames: int, size: int, repeats: float = 1.0
) -> np.ndarray:
    """Renders one clip.

    Args:
        name: Class name, a key of ``MOTIONS``.
        seed: Decides all that the class does not.
        num_frames: T.
        size: Side of the square frame, pixels.
        repeats: Most times that the motion is shown, see :func:`draw_repeats`: one after the other,
            each as much faster. The background drifts as it does otherwise.

    Returns:
        Frames in OpenCV's colour order, uint8 of shape ``(T, size, size, 3)``.
    """
    # A stream each, so that two classes rendered from one seed show the same scene.
    background_rng, scene_rng, motion_rng, noise_rng, _ = _streams(seed)
    times = np.arange(num_frames) * draw_repeats(seed, repeats) % num_frames
    times = np.minimum(times, num_frames - 1)
    drift = np.zeros(2)
    if background_rng.random() < BACKGROUND_MOVES:
        heading = background_rng.uniform(0.0, 2.0 * np.pi)
        speed = background_rng.uniform(*BACKGROUND_SPEED) * size / (num_frames - 1)
        drift = speed * np.array([np.cos(heading), np.sin(heading)])
    scene = _draw_scene(scene_rng, name, size)
    tracks = MOTIONS[name](motion_rng, scene.pose, num_frames, size)
    tracks = [track.at(times) for track in tracks]
    clip = np.empty((num_frames, size, size, 3), np.float32)
    for t in range(num_frames):
        clip[t] = _shifted(scene.background, *(drift * t))
        for track in tracks:
            paint_at(clip[t], scene.subject, track, t)
    clip += NOISE * noise_rng.standard_normal((num_frames, size, size, 1), np.float32)
    return np.clip(np.rint(clip), 0, 255).astype(np.uint8)


def _streams(seed: np.random.SeedSequence) -> list[np.random.Generator]:
    # A copy, because spawning changes a SeedSequence.
    copy = np.random.SeedSequence(seed.entropy, spawn_key=seed.spawn_key)
    return [np.random.default_rng(child) for child in copy.spawn(5)]


def draw_background(rng: np.random.Generator, size: int) -> tuple[np.ndarray, float]:
    """Texture and clutter, as in :attr:`Scene.background`, and their mean grey value."""
    grey = rng.uniform(90.0, 165.0)
    background = _coloured(rng, grey, rng.uniform(*BACKGROUND_CONTRAST), _texture(rng, size))
    for _ in range(rng.integers(*NUM_CLUTTER, endpoint=True)):
        clutter = draw_shape(rng, rng.choice(SHAPES), grey)
        _paint(background, clutter, _draw_pose(rng, (0.0, 1.0), CLUTTER_RADIUS, size))
    return background, grey


def _draw_scene(rng: np.random.Generator, name: str, size: int) -> Scene:
    background, grey = draw_background(rng, size)
    shape = rng.choice(SUBJECTS)
    if name.startswith(SHAPE_CLASS):
        shape = name.removeprefix(SHAPE_CLASS)
    subject = draw_shape(rng, shape, grey)
    return Scene(background, subject, _draw_pose(rng, START, RADIUS, size))


def _draw_pose(
    rng: np.random.Generator, place: tuple[float, float], radius: tuple[float, float], size: int
) -> Pose:
    x, y = rng.uniform(*place, 2) * size
    return Pose(x, y, rng.uniform(0.0, 360.0), rng.uniform(*radius) * size)


def _texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Periodic texture of mean 0 and deviation 1, float32 of shape ``(side, side)``."""
    kind = rng.choice(('stripes', 'checks', 'clouds'))
    if kind == 'clouds':
        frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)) * side
        spectrum = np.exp(-((frequency / rng.uniform(3.0, 8.0)) ** 2))
        texture = np.fft.irfft2(
            np.fft.rfft2(rng.standard_normal((side, side))) * spectrum, (side, side)
        )
    else:
        # Whole numbers of waves keep the texture periodic.
        waves = rng.integers(-5, 6, 2) + np.array([0, 6])
        phase = rng.uniform(0.0, 2.0 * np.pi, 2)
        y, x = np.mgrid[:side, :side] * (2.0 * np.pi / side)
        texture = np.sin(waves[0] * x + waves[1] * y + phase[0])
        if kind == 'checks':
            texture *= np.sin(waves[1] * x - waves[0] * y + phase[1])
    texture -= texture.mean()
    return (texture / texture.std()).astype(np.float32)


def _coloured(
    rng: np.random.Generator, grey: float, contrast: float, texture: np.ndarray
) -> np.ndarray:
    """A texture of shape ``(H, W)`` around a tinted grey, float32 of shape ``(H, W, 3)``."""
    tint = rng.uniform(-12.0, 12.0, 3)
    direction = rng.uniform(0.5, 1.0, 3)
    return (grey + tint + contrast * texture[..., None] * direction).astype(np.float32)


def draw_shape(rng: np.random.Generator, shape: str, background_grey: float) -> np.ndarray:
    """A textured shape, darker or lighter than the background, as in :attr:`Scene.subject`."""
    grey = background_grey + rng.choice((-1.0, 1.0)) * rng.uniform(*CONTRAST)
    contrast = rng.uniform(*TEXTURE_CONTRAST)
    # A ramp from side to side gives every shape a direction: even a disc is seen turning.
    ramp = np.linspace(-1.7, 1.7, _PATCH, dtype=np.float32)
    colour = _coloured(rng, grey, contrast, 0.7 * _texture(rng, _PATCH) + 0.7 * ramp)
    opacity = _mask(shape)[..., None]
    return np.concatenate([colour * opacity, opacity], axis=-1)


def _mask(shape: str) -> np.ndarray:
    """Opacity of a shape in the middle of its patch, float32 of shape ``(64, 64)``, 0..1."""
    fine = 4  # painted four times as large, then averaged: smooth edges
    side, radius = _PATCH * fine, _PATCH_RADIUS * fine
    mask = np.zeros((side, side), np.uint8)
    centre = (side // 2, side // 2)
    if shape in ('disc', 'ring'):
        cv2.circle(mask, centre, round(radius), 255, -1)
        if shape == 'ring':
            cv2.circle(mask, centre, round(0.55 * radius), 0, -1)
    else:
        points = side / 2 + radius * _corners(shape)
        cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], 255)
    small = cv2.resize(mask, (_PATCH, _PATCH), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255.0


def _corners(shape: str) -> np.ndarray:
    """Corners of a polygon inside the unit circle, of shape ``(corners, 2)``."""
    if shape == 'cross':
        a, b = 0.3, 0.95
        quarter = np.array([[a, -b], [a, -a], [b, -a]])
        turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
        return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])
    num_corners = {'square': 4, 'triangle': 3, 'star': 10}[shape]
    angle = 2.0 * np.pi * np.arange(num_corners) / num_corners
    radius = np.where(np.arange(num_corners) % 2, 0.42, 1.0) if shape == 'star' else 1.0
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _shifted(image: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """Shifts a periodic image by a number of pixels that need not be whole."""
    if dx == 0 and dy == 0:
        return image
    height, width = image.shape[:2]
    matrix = np.array([[1.0, 0.0, dx], [0.0, 1.0, dy]])
    return cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_WRAP)


def paint_at(frame: np.ndarray, subject: np.ndarray, track: Track, t: int) -> None:
    """Paint a subject, as in :attr:`Scene.subject`, where it is in frame ``t``, in place."""
    if track.visible[t]:
        _paint(frame, subject, Pose(track.x[t], track.y[t], track.angle[t], track.radius[t]))


def _paint(image: np.ndarray, shape: np.ndarray, pose: Pose) -> None:
    """Paints a shape over a periodic image ``(size, size, 3)``, in place."""
    size = image.shape[0]
    middle = size // 2
    column, row = int(np.floor(pose.x)), int(np.floor(pose.y))
    # Painted in the middle, where nothing is cut off, then rolled to its place, which wraps around.
    target = middle + pose.x - column, middle + pose.y - row
    scale, angle = pose.radius / _PATCH_RADIUS, np.deg2rad(pose.angle)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    matrix = np.array([[cos, -sin, target[0]], [sin, cos, target[1]]])
    matrix[:, 2] -= matrix[:, :2] @ np.full(2, (_PATCH - 1) / 2)
    layer = cv2.warpAffine(shape, matrix, (size, size))
    layer = np.roll(layer, (row - middle, column - middle), axis=(0, 1))
    image *= 1.0 - layer[..., 3:]
    image += layer[..., :3]
