# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Summaries of categories, and of bins of compute."""

import math

import numpy as np
import pytest

from policy_report.categories import (
    accuracy_bins,
    spread_evenly,
    summarise_categories,
    wilson_interval,
)

from .predictions import videos

pytestmark = pytest.mark.fast

NAMES = ['a', 'b', 'c']


def test_a_category_is_that_of_its_videos():
    rows = [(0, 0, 0.5), (2, 0, 0.75), (0, 1, 0.25), (0, 0, 0.6)]
    first, second = summarise_categories(videos(rows), NAMES)
    assert (first.label, first.name, first.videos) == (0, 'a', 3)
    assert (first.most, first.least) == (3, 2)
    assert first.accuracy == pytest.approx(2 / 3)
    assert first.mean == pytest.approx(0.45)
    assert (second.label, second.name, second.videos, second.accuracy) == (2, 'c', 1, 0)
    assert second.most == second.least == 1


def test_a_video_of_several_categories_is_in_each():
    found = summarise_categories(videos([([0, 2], 2, 0.5), ([], 1, 0.25), (2, 0, 0.75)]), NAMES)
    assert [(c.name, c.videos, c.most, c.least) for c in found] == [('a', 1, 0, 0), ('c', 2, 2, 0)]
    assert summarise_categories(videos([(-1, 0, 0.5)]), NAMES) == []


def test_categories_are_spread_from_the_dearest_to_the_cheapest():
    rows = [(0, 0, 0.5), (1, 1, 0.9), (2, 2, 0.7)]
    found = summarise_categories(videos(rows), NAMES)
    assert [c.name for c in spread_evenly(found, 9)] == ['b', 'c', 'a']
    assert [c.name for c in spread_evenly(found, 2)] == ['b', 'a']
    assert [c.name for c in spread_evenly(found, 1)] == ['b']
    assert spread_evenly(found, 0) == []
    assert spread_evenly([], 3) == []


def test_every_video_is_in_one_bin():
    random = np.random.default_rng(0)
    ratio = random.uniform(0.2, 0.9, 500)
    correct = random.integers(0, 2, 500)
    bins = accuracy_bins(ratio, correct, np.linspace(ratio.min(), ratio.max(), 8))
    assert sum(b.videos for b in bins) == 500
    assert sum(b.videos * b.accuracy for b in bins) == pytest.approx(correct.sum())
    for b in bins[:-1]:
        inside = (ratio >= b.low) & (ratio < b.high)
        assert b.videos == inside.sum()
        assert b.accuracy == pytest.approx(correct[inside].mean())
        assert b.interval[0] < b.accuracy < b.interval[1]


def test_an_empty_bin_has_no_accuracy():
    first, middle, last = accuracy_bins(np.array([0.1, 0.9]), np.array([1, 0]), np.arange(4) / 3)
    assert (first.videos, middle.videos, last.videos) == (1, 0, 1)
    assert math.isnan(middle.accuracy)


def test_the_interval_is_that_of_wilson():
    # Solutions p of (share - p)^2 = z^2 p (1 - p) / n.
    for share, number in [(0.5, 10), (0.9, 40), (1.0, 5), (0.0, 7)]:
        for p in wilson_interval(share, number):
            assert (share - p) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / number, abs=1e-12)
