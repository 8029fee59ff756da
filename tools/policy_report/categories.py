# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What the videos of a category took, and bins of compute."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .videos import Videos


@dataclass(frozen=True)
class Category:
    """The videos of one label; compute is a share of the static backbone's multiply-adds."""

    label: int
    name: str
    videos: int
    accuracy: float
    """Mean of ``correct``."""
    mean: float
    most: int
    """Index of the video that took the most compute."""
    least: int
    """Index of the video that took the least."""


class Bin(NamedTuple):
    """The videos whose compute lies between ``low`` and ``high``."""

    low: float
    high: float
    videos: int
    accuracy: float
    """Mean of ``correct``; NaN without videos."""
    interval: tuple[float, float]
    """Where the accuracy lies with a confidence of 95 %, or more where ``correct`` has shares: they
    vary less than zeros and ones of the same mean."""


def summarise_categories(videos: Videos, names: Sequence[str]) -> list[Category]:
    """The categories that have videos, by label; a video with several labels is in several.

    Args:
        videos: The videos of a test.
        names: Name of every class.
    """
    members: dict[int, list[int]] = {}
    for index, source in enumerate(videos.sources):
        for label in source.labels:
            members.setdefault(label, []).append(index)
    categories = []
    for label, indices in sorted(members.items()):
        ratio = videos.ratio[indices]
        categories.append(
            Category(
                label=label,
                name=names[label],
                videos=len(indices),
                accuracy=float(videos.correct[indices].mean()),
                mean=float(ratio.mean()),
                most=indices[int(ratio.argmax())],
                least=indices[int(ratio.argmin())],
            )
        )
    return categories


def spread_evenly(categories: Sequence[Category], number: int) -> list[Category]:
    """Some categories, from the one with the highest mean compute to the one with the lowest.

    Args:
        categories: All categories.
        number: How many to take, evenly spread over the order of their means; all if there are no
            more.
    """
    ordered = sorted(categories, key=lambda category: (-category.mean, category.label))
    number = min(number, len(ordered))
    return [ordered[int(index)] for index in np.linspace(0, len(ordered) - 1, number).round()]


def accuracy_bins(ratio: np.ndarray, correct: np.ndarray, edges: np.ndarray) -> list[Bin]:
    """Accuracy in bins of compute.

    Args:
        ratio: Compute of the labelled videos, (N,).
        correct: 1 for each that is correct, 0 for each that is not, or a share, (N,).
        edges: Edges of the bins, rising; a video on the last one is in the last bin.
    """
    inside = np.clip(np.digitize(ratio, edges) - 1, 0, len(edges) - 2)
    bins = []
    for index, (low, high) in enumerate(itertools.pairwise(edges)):
        hits = correct[inside == index]
        accuracy = float(hits.mean()) if len(hits) else float('nan')
        interval = wilson_interval(accuracy, len(hits))
        bins.append(Bin(float(low), float(high), len(hits), accuracy, interval))
    return bins


def wilson_interval(share: float, number: int) -> tuple[float, float]:
    """Wilson's interval of a share of some trials, with a confidence of 95 %."""
    if not number:
        return float('nan'), float('nan')
    z = 1.959964
    centre = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = z / (1 + z**2 / number)
    half *= (share * (1 - share) / number + z**2 / (4 * number**2)) ** 0.5
    return max(centre - half, 0.0), min(centre + half, 1.0)
