# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Frames of a video beside what every layer of the network decided for it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure, SubFigure

_SIZE = (11.0, 4.5)  # inches; the height grows with the layers
_SHARE_OF_FRAMES = 0.44
_TITLE, _INCHES_A_LAYER = 1.6, 0.17
_COLUMNS = {'channels': 'C0', 'frames': 'C1'}
"""What is decided, in the order of a policy, and its colour."""


def computed_shares(policy: np.ndarray) -> np.ndarray:
    """Share of the channels and frames that each layer computes, (layers, 2), mean over views.

    An option p of a policy, (views, layers, 2), computes 2^-p, rounded up to whole channels and
    frames, which is left out here. A policy of another shape, or with negative options, raises a
    ValueError.
    """
    policy = np.asarray(policy)
    if policy.ndim != 3 or policy.shape[2] != 2 or 0 in policy.shape or policy.min() < 0:
        raise ValueError(
            'policy: expected options, 0 or more, of shape (views, layers, 2), got shape '
            f'{policy.shape}'
        )
    return np.mean(0.5**policy, axis=0)


def draw(
    frames: np.ndarray, layers: Sequence[str], policy: np.ndarray, title: str, most: int = 8
) -> Figure:
    """Draw frames on the left; on the right a bar for the channels and the frames of each layer.

    Args:
        frames: (views, T, H, W, 3), uint8 RGB.
        layers: Names of the layers.
        policy: (views, layers, 2), options p_c and p_t.
        title: Lines above; taken literally.
        most: Number of frames that are shown, evenly spread over all.

    Raises:
        ValueError: If a shape is another.
    """
    frames = np.asarray(frames)
    if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(
            'frames: expected uint8 of shape (views, T, H, W, 3), got '
            f'{frames.dtype} of shape {frames.shape}'
        )
    shares = computed_shares(policy)
    if len(shares) != len(layers):
        raise ValueError(f'layers: expected {len(shares)} names, as in policy, got {len(layers)}')
    width, height = _SIZE[0], max(_SIZE[1], _TITLE + _INCHES_A_LAYER * len(layers))
    figure = Figure(figsize=(width, height), layout='constrained')
    figure.suptitle(title, x=0.01, ha='left', fontsize=10, parse_math=False)
    ratios = (_SHARE_OF_FRAMES, 1 - _SHARE_OF_FRAMES)
    halves: Any = figure.subfigures(1, 2, width_ratios=ratios, wspace=0.02)
    _draw_frames(halves[0], frames, most, _SHARE_OF_FRAMES * width / (height - _TITLE / 2))
    _draw_shares(halves[1], layers, shares, views=len(np.asarray(policy)))
    return figure


def _draw_frames(figure: SubFigure, frames: np.ndarray, most: int, aspect: float) -> None:
    views, length, *size, _ = frames.shape
    shown = np.unique(np.linspace(0, views * length - 1, min(most, views * length)).round())
    columns = _best_columns(len(shown), aspect * size[0] / size[1])
    rows = math.ceil(len(shown) / columns)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, index in zip(axes.flat, shown.astype(int), strict=False):
        view, t = divmod(index, length)
        axis.imshow(frames[view, t], interpolation='nearest')
        name = f'view {view + 1}, frame {t + 1}' if views > 1 else f'frame {t + 1}'
        axis.set_title(f'{name} of {length}', fontsize=7, pad=2)


def _best_columns(number: int, aspect: float) -> int:
    """Columns of the grid whose square tiles are largest in an area of width to height aspect."""

    def side(columns: int) -> float:
        return min(aspect / columns, 1 / math.ceil(number / columns))

    return max(range(1, number + 1), key=side)


def _draw_shares(figure: SubFigure, layers: Sequence[str], shares: np.ndarray, views: int) -> None:
    heading = f', mean of {views} views' if views > 1 else ' computed'
    axes = figure.subplots(1, 2, sharey=True)
    for axis, column, (name, colour) in zip(axes, shares.T, _COLUMNS.items(), strict=True):
        places = np.arange(len(layers))
        axis.barh(places, np.ones(len(layers)), height=0.8, color='0.93')
        bars = axis.barh(places, column, height=0.8, color=colour)
        labels = [f'{share:.3g}' if share < 1 else '' for share in column]
        axis.bar_label(bars, labels, padding=2, fontsize=6, color='0.3')
        axis.set_title(name + heading, fontsize=9)
        axis.set_xlim(0, 1)
        axis.set_xticks([0, 0.25, 0.5, 1], labels=['0', '1/4', '1/2', '1'], fontsize=8)
        axis.tick_params(axis='y', length=0)
        axis.set_yticks(places, labels=layers, fontsize=7, parse_math=False)
        axis.set_ylim(len(layers) - 0.5, -0.5)
        for side in ('top', 'right', 'left'):
            axis.spines[side].set_visible(False)
    axes[1].tick_params(labelleft=False)
