# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Frames side by side, and boxes with their actions drawn on one."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

ANNOTATED, PREDICTED = '#16a34a', '#ea580c'
"""Colours of boxes."""
GAP = 3
"""Pixels between frames."""
WHITE = 255
_LINES_A_FRAME = 18  # of text, if they filled its height
_INK = 'white'


Place = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels of a picture."""


class Box(NamedTuple):
    """A box and what is written next to it."""

    corners: Sequence[float]
    """x1, y1, x2, y2 as shares of width and height."""
    lines: Sequence[str]
    colour: str
    low: bool = False
    """Whether the text stands below the box, and not above."""


def describe(names: Sequence[str], scores: np.ndarray, most: int = 3) -> list[str]:
    """At most so many of the likeliest actions, best first; from the second on, those with a score
    of 0.5 or more. Names and scores, (actions,), are of all."""
    order = np.argsort(-scores, kind='stable')[:most]
    return [
        f'{names[action]} {scores[action]:.2f}'
        for place, action in enumerate(order)
        if place == 0 or scores[action] >= 0.5
    ]


def side_by_side(frames: Sequence[np.ndarray], height: int) -> np.ndarray:
    """Put frames next to each other.

    Args:
        frames: RGB, grey or flow, each (H, W, 3), (H, W), (H, W, 1) or (H, W, 2), whose first
            component is shown; bytes.
        height: Height of the result in pixels.

    Returns:
        RGB, (height, W, 3), bytes.
    """
    columns: list[np.ndarray] = []
    for frame in frames:
        if frame.ndim == 2 or frame.shape[2] != 3:
            frame = np.repeat(frame.reshape(*frame.shape[:2], -1)[..., :1], 3, axis=2)
        width = max(round(frame.shape[1] * height / frame.shape[0]), 1)
        smaller = height < frame.shape[0]
        method = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
        columns += [
            cv2.resize(frame, (width, height), interpolation=method),
            np.full((height, GAP, 3), WHITE, np.uint8),
        ]
    return np.concatenate(columns[:-1], axis=1)


def draw_boxes(frame: np.ndarray, boxes: Sequence[Box], height: int) -> np.ndarray:
    """Draw boxes on a frame.

    Args:
        frame: As for :func:`side_by_side`.
        boxes: What to draw, the last on top. Text is moved where it would leave the frame or
            cover another, if there is room.
        height: Height of the result in pixels.

    Returns:
        RGB, (height, W, 3), bytes.
    """
    image = Image.fromarray(side_by_side([frame], height))
    canvas = ImageDraw.Draw(image, 'RGBA')
    font = ImageFont.truetype(findfont('DejaVu Sans'), max(height // _LINES_A_FRAME, 6))
    places = [_place(box, image.size) for box in boxes]
    for box, place in zip(boxes, places, strict=True):
        canvas.rectangle(place, outline=box.colour, width=2)
    texts: list[Place] = []
    for box, place in zip(boxes, places, strict=True):
        if box.lines:
            texts.append(_write(canvas, box, place, texts, image.size, font))
    return np.asarray(image)


def _place(box: Box, size: tuple[int, int]) -> Place:
    x1, y1, x2, y2 = np.clip(box.corners, 0, 1) * np.tile(np.subtract(size, 1), 2)
    return x1, y1, max(x1, x2), max(y1, y2)


def _write(
    canvas: ImageDraw.ImageDraw,
    box: Box,
    place: Place,
    others: Sequence[Place],
    size: tuple[int, int],
    font: ImageFont.FreeTypeFont,
) -> Place:
    """Write next to a box, where other texts leave room; returns where."""
    text = '\n'.join(box.lines)
    left, top, right, bottom = canvas.multiline_textbbox((0, 0), text, font, spacing=2)
    wide, high = right - left + 4, bottom - top + 4
    x = max(min(place[0], size[0] - wide), 0)
    y = max(min(place[3] if box.low else place[1] - high, size[1] - high), 0)
    free = [y, *(bottom + 1 for *_, bottom in others), *(top - high - 1 for _, top, *_ in others)]
    free = [
        start
        for start in free
        if 0 <= start <= size[1] - high
        and not any(_overlap((x, start, x + wide, start + high), other) for other in others)
    ]
    y = min(free, key=lambda start: abs(start - y), default=y)
    canvas.rectangle([x, y, x + wide, y + high], fill=f'{box.colour}c0')
    canvas.multiline_text((x + 2 - left, y + 2 - top), text, _INK, font, spacing=2)
    return x, y, x + wide, y + high


def _overlap(a: Place, b: Place) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]
