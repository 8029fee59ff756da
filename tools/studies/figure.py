# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Accuracy over compute of the networks of a study."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

Point = tuple[float, float]
_MARKERS = 'osD^vP*X<>hd'


def draw(points: Mapping[str, Sequence[Point]], line: str | None = None) -> Figure:
    """Draw one point a run, and a larger one for the mean of each network.

    Args:
        points: For every network its runs: billions of multiply-adds a clip, and top-1 in %.
        line: The network whose mean accuracy is drawn as a line.

    Raises:
        ValueError: If a network has no run.
    """
    chart = Figure(figsize=(9, 6), layout='constrained')
    axis = chart.subplots()
    for i, (name, runs) in enumerate(points.items()):
        if not runs:
            raise ValueError(f'{name}: expected at least one run to draw')
        x, y = np.mean(runs, axis=0)
        style: dict[str, Any] = {'marker': _MARKERS[i % len(_MARKERS)], 'color': f'C{i % 10}'}
        axis.scatter(*zip(*runs, strict=True), **{**style, 's': 22, 'alpha': 0.45, 'linewidths': 0})
        edge = 'white' if i < 10 else 'black'  # colours begin again
        axis.scatter(x, y, s=110, edgecolors=edge, label=name, zorder=3, **style)
        if name == line:
            axis.axhline(y, color=style['color'], linestyle='--', linewidth=1, zorder=0)
    axis.set(xlabel='GMACs a clip, gates and cheap operations included', ylabel='top-1 (%)')
    axis.grid(alpha=0.3)
    chart.legend(loc='outside right upper')
    return chart
