# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Whether still clips are given less compute along time than moving ones."""

from collections.abc import Mapping
from typing import Any

import numpy as np

PERMUTATIONS = 10_000
_AT_ONCE = 500


def motion_statistics(videos: Mapping[str, list]) -> dict[str, Any]:
    """Compare the share of frames that is computed for still clips and for moving ones.

    Args:
        videos: Lists 'still', 'class_name' and 'frames_computed' of the same length.

    Returns:
        'all' compares still clips with all others, 'same_classes' with those of the classes that
        have still clips, which differ in nothing but a moving background. Each is what
        :func:`compare_groups` returns.
    """
    still, share = np.array(videos['still'], bool), np.array(videos['frames_computed'], float)
    names = np.array(videos['class_name'])
    same = np.isin(names, names[still])
    return {
        'all': compare_groups(share[still], share[~still]),
        'same_classes': compare_groups(share[still], share[~still & same]),
    }


def compare_groups(still: np.ndarray, moving: np.ndarray) -> dict[str, Any] | None:
    """Means of two groups, and how likely chance makes them so different.

    Args:
        still: Values, (clips,).
        moving: Values, (clips,).

    Returns:
        Numbers of clips, means, and 'p' of :func:`permutation_test`; None if a group is empty.
    """
    if not len(still) or not len(moving):
        return None
    return {
        'still_clips': len(still),
        'moving_clips': len(moving),
        'still': float(still.mean()),
        'moving': float(moving.mean()),
        'p': permutation_test(still, moving),
    }


def permutation_test(
    a: np.ndarray, b: np.ndarray, permutations: int = PERMUTATIONS, seed: int = 0
) -> float:
    """Two-sided permutation test of the difference of two means.

    Args:
        a: Values, (n,).
        b: Values, (m,).
        permutations: Number of random assignments to the two groups.
        seed: Of the assignments.

    Returns:
        Share p of assignments, the given one included, with a difference at least as large.
    """
    rng = np.random.default_rng(seed)
    values = np.concatenate([a, b])
    values = values - values.mean()
    # Sums of one group decide: the sum of all is fixed. Equal values give equal sums but for
    # rounding, hence the tolerance.
    observed = abs(a.mean() - b.mean()) * (1 - 1e-9) - 1e-12
    extreme, left = 1, permutations
    while left:
        rows = min(left, _AT_ONCE)
        drawn = rng.permuted(np.broadcast_to(values, (rows, len(values))), axis=1)
        difference = drawn[:, : len(a)].mean(1) - drawn[:, len(a) :].mean(1)
        extreme += int((abs(difference) >= observed).sum())
        left -= rows
    return extreme / (permutations + 1)
