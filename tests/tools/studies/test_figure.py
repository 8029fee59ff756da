# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The figure of the study: a point a run, a mean a network, and a line."""

import numpy as np
import pytest

from studies import figure

POINTS = {
    'static': [(0.06, 88.0), (0.06, 90.0)],
    'vared2': [(0.035, 87.0), (0.037, 85.0)],
    **{f'other{i}': [(0.04, 80.0 + i)] for i in range(11)},
}


def test_points_means_and_line():
    (axis,) = figure.draw(POINTS, line='static').axes
    drawn = [np.asarray(c.get_offsets()).tolist() for c in axis.collections]
    for name, runs in POINTS.items():
        assert [list(run) for run in runs] in drawn, name
    assert [[0.036, 86.0]] in [np.round(points, 6).tolist() for points in drawn]
    (line,) = axis.get_lines()
    assert set(line.get_ydata()) == {89.0}


def test_networks_can_be_told_apart():
    (axis,) = figure.draw(POINTS).axes
    handles, labels = axis.get_legend_handles_labels()
    assert labels == list(POINTS)
    looks = {
        (
            tuple(h.get_facecolor()[0]),
            h.get_paths()[0].vertices.tobytes(),
            tuple(h.get_edgecolor()[0]),
        )
        for h in handles
    }
    assert len(looks) == len(POINTS)
    assert not axis.get_lines()


def test_network_without_runs():
    with pytest.raises(ValueError, match='vared2: expected at least one run'):
        figure.draw({'vared2': []})
