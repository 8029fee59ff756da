# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Still against moving clips: the groups, and the permutation test."""

import itertools

import numpy as np
import pytest

from studies.motion import compare_groups, motion_statistics, permutation_test


def test_agrees_with_all_assignments():
    values = np.array([0.1, 0.5, 0.3, 0.9, 0.8, 0.2, 0.7])
    observed = abs(values[:3].mean() - values[3:].mean())
    differences = []
    for chosen in itertools.combinations(range(7), 3):
        inside = np.isin(range(7), chosen)
        differences.append(abs(values[inside].mean() - values[~inside].mean()))
    exact = np.mean(np.array(differences) >= observed - 1e-12)
    assert permutation_test(values[:3], values[3:]) == pytest.approx(exact, abs=0.015)


def test_chance_and_certainty():
    rng = np.random.default_rng(0)
    chances = [permutation_test(*rng.normal(size=(2, 30)), 200, seed) for seed in range(200)]
    assert np.mean(np.array(chances) < 0.1) == pytest.approx(0.1, abs=0.065)
    apart = permutation_test(np.full(30, 0.5) + 1e-3 * rng.normal(size=30), np.full(40, 0.9), 999)
    assert apart == 1 / 1000
    assert permutation_test(np.full(30, 0.7), np.full(40, 0.7), 100) == 1


def test_groups():
    videos = {
        'still': [True, False, False, True, False],
        'class_name': ['star', 'star', 'moves', 'ring', 'ring'],
        'frames_computed': [0.5, 0.75, 1.0, 0.25, 0.75],
    }
    found = motion_statistics(videos)
    every, same = found['all'], found['same_classes']
    assert (every['still_clips'], every['moving_clips']) == (2, 3)
    assert every['still'] == pytest.approx(0.375)
    assert every['moving'] == pytest.approx(2.5 / 3)
    assert (same['still_clips'], same['moving_clips']) == (2, 2)
    assert same['moving'] == pytest.approx(0.75)
    assert 0 < every['p'] <= 1
    assert compare_groups(np.array([]), np.array([1.0])) is None
