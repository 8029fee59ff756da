# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""How time and memory grow with the length, the size and the number of the clips."""

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullLocator

Row = Mapping[str, Any]

QUANTITIES: dict[str, Callable[[Row], int]] = {
    'frames': lambda row: row['shape'][1],
    'side (pixels)': lambda row: row['shape'][2],
    'batch size (clips)': lambda row: row['batch_size'],
}
"""What a clip is varied in, by label of the axis."""
MEASURES = {
    'time (ms)': ('static_ms', 'dynamic_ms'),
    'peak memory (MB)': ('static_peak_mb', 'dynamic_peak_mb'),
}
"""What is drawn, by label of the axis: keys of the stock network and of ours."""
_SETTINGS = ('mode', 'device', 'dtype')
_KEYS = (
    'policy',
    'batch_size',
    'shape',
    *_SETTINGS,
    *(k for pair in MEASURES.values() for k in pair),
)


def load_rows(paths: Sequence[str]) -> list[Row]:
    """Read the rows of benchmarks.

    Args:
        paths: Files that ``tools/benchmark.py --out`` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is none of a benchmark, has no rows, or a row lacks a key.
    """
    rows: list[Row] = []
    for path in paths:
        with open(path) as file:
            try:
                report = json.load(file)
            except ValueError as error:
                raise ValueError(f'{path}: expected JSON of tools/benchmark.py: {error}') from error
        found = report.get('rows') if isinstance(report, dict) else None
        if not found:
            raise ValueError(f'{path}: expected "rows" of tools/benchmark.py, found none')
        for number, row in enumerate(found):
            for key in _KEYS:
                if key not in row:
                    raise ValueError(f'{path}: row {number} lacks {key!r}')
        rows += found
    return rows


def comparable_rows(rows: Sequence[Row], quantity: str) -> list[Row]:
    """Rows in which all but one of the ``QUANTITIES`` have their most common value.

    Where several values are equally common, the smallest counts.
    """
    for other, value in QUANTITIES.items():
        if other != quantity:
            counts = Counter(value(row) for row in rows)
            common = min(counts, key=lambda v: (-counts[v], v))
            rows = [row for row in rows if value(row) == common]
    return list(rows)


def curves(rows: Sequence[Row], quantity: str, measure: str) -> dict[str, list[tuple[int, float]]]:
    """Points of the stock network and of ours under every policy.

    Args:
        rows: Rows of benchmarks.
        quantity: One of ``QUANTITIES``.
        measure: One of ``MEASURES``.

    Returns:
        For every network its points, by quantity; medians where rows repeat one, as those of the
        stock network do for every policy. Names tell mode, device and type where rows differ.
    """
    varied = [key for key in _SETTINGS if len({row[key] for row in rows}) > 1]
    points: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in comparable_rows(rows, quantity):
        networks = ('stock', f'ours, {row["policy"]}')
        for network, key in zip(networks, MEASURES[measure], strict=True):
            name = ', '.join((network, *(row[setting] for setting in varied)))
            points[name][QUANTITIES[quantity](row)].append(row[key])
    return {
        name: sorted((x, statistics.median(values)) for x, values in by_quantity.items())
        for name, by_quantity in sorted(points.items(), key=lambda item: item[0][:5] != 'stock')
    }


def draw(rows: Sequence[Row]) -> Figure:
    """Draw time and memory over frames, side and batch size, on logarithmic axes.

    Args:
        rows: Rows of benchmarks, see :func:`load_rows`.
    """
    figure = Figure(figsize=(12, 7), layout='constrained')
    axes = figure.subplots(len(MEASURES), len(QUANTITIES), sharex='col', squeeze=False)
    colours: dict[str, str] = {}  # of a network, the same in all axes
    handles = {}
    for line, measure in zip(axes, MEASURES, strict=True):
        for axis, quantity in zip(line, QUANTITIES, strict=True):
            for name, points in curves(rows, quantity, measure).items():
                colour = colours.setdefault(name, f'C{len(colours) % 10}')
                style = {'color': colour, 'linestyle': '--' if name[:5] == 'stock' else '-'}
                (handles[name],) = axis.plot(*zip(*points, strict=True), marker='o', **style)
            axis.set(xscale='log', yscale='log', xlabel=quantity, ylabel=measure)
            ticks = sorted({QUANTITIES[quantity](row) for row in comparable_rows(rows, quantity)})
            axis.set_xticks(ticks, labels=[str(tick) for tick in ticks])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.yaxis.set_major_formatter(LogFormatter())
            axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
            axis.grid(alpha=0.3)
    figure.legend(handles.values(), handles, loc='outside lower center', ncols=4)
    return figure
