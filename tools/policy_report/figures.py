# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Figures of what gates chose, and of what that took."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from .categories import Category, accuracy_bins
from .strips import Strip
from .videos import Videos

_ALL, _CORRECT, _WRONG, _ABSENT = '#64748b', '#2563eb', '#d97706', '#e5e7eb'
_BINS = 24
_ACCURACY_BINS = 12
_ANNOTATED_LAYERS = 80
_SHARES = ('1', '1/2', '1/4', '1/8')


def draw_options(chosen: np.ndarray, layers: Mapping[str, tuple[int, int]]) -> Figure:
    """Draw a heat map of the options that layers chose.

    Args:
        chosen: Shares of views, (layers, 2, options), see :class:`~.videos.Videos`.
        layers: Number of channel and of temporal options of every layer, by its name. What a layer
            does not have is grey.
    """
    shown = max(max(numbers) for numbers in layers.values())
    figure = Figure(figsize=(4.2 + 1.1 * shown, 1.4 + 0.24 * len(layers)), layout='constrained')
    axes = figure.subplots(1, 2, sharey=True)
    titles = ('channels computed', 'frames computed')
    for dimension, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        has = np.array([np.arange(shown) < numbers[dimension] for numbers in layers.values()])
        values = np.ma.masked_where(~has, chosen[:, dimension, :shown])
        axis.set_facecolor(_ABSENT)
        image = axis.imshow(values, cmap='Blues', vmin=0, vmax=1, aspect='auto')
        axis.set_xticks(range(shown), labels=_SHARES[:shown])
        axis.set_title(title, fontsize=10)
        axis.tick_params(length=0, labelsize=8, labeltop=len(layers) > 30)
        if len(layers) <= _ANNOTATED_LAYERS:
            _annotate(axis, values)
    axes[0].set_yticks(range(len(layers)), labels=list(layers), parse_math=False)
    shrink = min(0.8, 14 / len(layers))
    style: dict[str, Any] = {'shrink': shrink, 'aspect': 20, 'anchor': (0, 1)}
    bar = figure.colorbar(image, ax=axes, format=PercentFormatter(1), **style)
    bar.set_label('share of views', fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def _annotate(axis: Axes, values: np.ma.MaskedArray) -> None:
    for (row, column), value in np.ma.ndenumerate(values):
        colour = 'white' if value > 0.6 else 'black'
        text = f'{100 * value:.0f}' if value in (0, 1) or 0.005 <= value < 0.995 else '<1'
        text = '>99' if 0.995 <= value < 1 else text
        axis.text(column, row, text, ha='center', va='center', color=colour, fontsize=7)


def draw_compute(videos: Videos) -> Figure:
    """Draw how compute spreads over videos, and whether it goes with correctness.

    Without any label only the first is drawn.

    Args:
        videos: The videos of a test.
    """
    labelled = videos.correct >= 0
    panels = 3 if labelled.any() else 1
    figure = Figure(figsize=(4.4 * panels, 3.4), layout='constrained')
    axes = figure.subplots(1, panels, sharex=True, squeeze=False)[0]
    edges = _edges(videos.ratio, _BINS)
    axes[0].hist(videos.ratio, list(edges), color=_ALL)
    axes[0].axvline(videos.ratio.mean(), color='black', linewidth=1, linestyle='--')
    axes[0].set_title('all videos; dashed: mean', fontsize=10)
    axes[0].set_ylabel('videos')
    if panels == 3:
        _compare_correct(axes[1], videos, edges)
        _draw_accuracy(axes[2], videos, labelled)
    for axis in axes:
        axis.xaxis.set_major_formatter(PercentFormatter(1))
        axis.set_xlabel('compute, share of the static backbone')
        axis.spines[['top', 'right']].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure


def _compare_correct(axis: Axes, videos: Videos, edges: np.ndarray) -> None:
    correct, measure = videos.correct, videos.measure
    for those, name, colour in (
        (correct == 1, measure.right, _CORRECT),
        ((correct >= 0) & (correct < 1), measure.wrong, _WRONG),
    ):
        ratio = videos.ratio[those]
        if len(ratio):
            weights = np.full(len(ratio), 1 / len(ratio))
            label = f'{name}: {len(ratio):,} videos, mean {100 * ratio.mean():.1f} %'
            style: dict[str, Any] = {'color': colour, 'histtype': 'stepfilled', 'alpha': 0.35}
            axis.hist(ratio, list(edges), weights=weights, label=label, **style)
            axis.axvline(ratio.mean(), ymax=0.78, color=colour, linewidth=1, linestyle='--')
    axis.set_title(f'{measure.right} and {measure.wrong}, each to 100 %', fontsize=10)
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.set_ylabel('share of these videos')
    axis.set_ylim(top=axis.get_ylim()[1] * 1.25)  # room for the legend
    axis.legend(fontsize=8, frameon=False, loc='upper right')


def _draw_accuracy(axis: Axes, videos: Videos, labelled: np.ndarray) -> None:
    ratio, correct = videos.ratio[labelled], videos.correct[labelled]
    bins = [b for b in accuracy_bins(ratio, correct, _edges(ratio, _ACCURACY_BINS)) if b.videos]
    centres = [(b.low + b.high) / 2 for b in bins]
    accuracy = [b.accuracy for b in bins]
    errors = np.abs(np.array([b.interval for b in bins]).T - accuracy)
    axis.bar(centres, accuracy, width=[0.9 * (b.high - b.low) for b in bins], color='#bfdbfe')
    axis.errorbar(centres, accuracy, yerr=errors, fmt='none', ecolor=_CORRECT, capsize=2)
    for centre, b in zip(centres, bins, strict=True):
        axis.text(centre, 0.01, f'{b.videos:,}', ha='center', rotation=90, fontsize=7)
    axis.set_ylim(0, 1.02)
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.set_ylabel(videos.measure.whole)
    title = f'{videos.measure.title}, 95 % interval, videos of each bin'
    axis.set_title(title, fontsize=10)


def _edges(ratio: np.ndarray, bins: int) -> np.ndarray:
    low, high = ratio.min(), ratio.max()
    if high - low < 1e-6:  # all videos take the same
        return np.array([low - 0.005, high + 0.005])
    return np.linspace(low, high, bins + 1)


def draw_categories(
    categories: Sequence[Category], videos: Videos, strips: Mapping[int, Strip]
) -> Figure:
    """Draw the dearest and the cheapest video of categories next to each other.

    Args:
        categories: What to draw, from top to bottom; at least one.
        videos: The videos of a test.
        strips: Frames of these videos, by index.
    """
    figure = Figure(figsize=(15, 0.3 + 1.35 * len(categories)), layout='constrained')
    axes = figure.subplots(len(categories), 2, squeeze=False)
    for row, category in zip(axes, categories, strict=True):
        pairs = (('most', category.most), ('least', category.least))
        for axis, (word, index) in zip(row, pairs, strict=True):
            share = f'{word} {100 * videos.ratio[index]:.1f} %'
            title = f'{printable(category.name, 60)}: {share}'
            axis.set_title(title, fontsize=9, loc='left', parse_math=False)
            axis.set_axis_off()
            axis.set_anchor('W')
            draw_strip(axis, strips[index], videos.sources[index].name)
    return figure


def draw_strip(axis: Axes, strip: Strip, name: str) -> None:
    """Draw frames, or what is wrong with them and the name of the file."""
    if strip.image is not None:
        axis.imshow(strip.image, interpolation='antialiased')
        return
    text = f'{printable(name, 70)}\n{printable(strip.problem, 90)}'
    box = {'facecolor': _ABSENT, 'edgecolor': 'none', 'boxstyle': 'round,pad=1'}
    style: dict[str, Any] = {'ha': 'center', 'va': 'center', 'fontsize': 8, 'bbox': box}
    axis.text(0.5, 0.5, text, transform=axis.transAxes, parse_math=False, **style)


def printable(text: str, length: int) -> str:
    """A text of one line that fonts can draw, shortened in the middle."""
    text = ''.join(c if c.isprintable() else '\N{REPLACEMENT CHARACTER}' for c in text)
    half = (length - 1) // 2
    return text if len(text) <= length else f'{text[:half]}…{text[-half:]}'
