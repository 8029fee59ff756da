# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Score detections that ``tools/test.py --dump`` wrote, and set networks and seeds side by side."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmaction.registry import METRICS
from mmengine.config import Config

from commands.testing import metrics_of
from policy_report.dump import load_dump

from .statistics import Spread


@dataclass
class Score:
    """A network on a test set; compute is a mean over clips."""

    mean_ap: float
    ratio: float
    """Executed over static multiply-adds of the backbone's convolutions."""
    whole: float
    """The same with gates and cheap operations on the executed side."""
    least: float
    """Smallest ratio of a clip."""
    most: float
    """Largest ratio of a clip."""


def score(cfg: Config, dump: str) -> Score:
    """Score a dump.

    Args:
        cfg: The config that was tested; one of its test metrics is ``AVAMetric``.
        dump: The pickle file.
    """
    samples = load_dump(dump)
    (config,) = [metric for metric in metrics_of(cfg) if metric['type'] == 'AVAMetric']
    metric = METRICS.build(config)
    metric.process(None, samples)
    ratios = [sample.get('compute_ratio', 1.0) for sample in samples]
    whole = [
        sample['compute_ratio'] * (1 + sample['overhead_gmacs'] / sample['compute_gmacs'])
        if 'compute_ratio' in sample
        else 1.0
        for sample in samples
    ]
    return Score(
        float(metric.evaluate(len(samples))['mAP/overall']),
        statistics.fmean(ratios),
        statistics.fmean(whole),
        min(ratios),
        max(ratios),
    )


def chance(ann_file: str) -> float:
    """Mean over actions of the share of boxes that show it, the average precision of a network
    that scores at random."""
    with open(ann_file) as file:
        rows = [line.strip().split(',') for line in file]
    boxes = {(*row[:2], row[7]) for row in rows}
    actions = [row[6] for row in rows]
    return statistics.fmean(actions.count(a) / len(boxes) for a in set(actions))


def markdown(scores: Mapping[str, Sequence[Score]], at_random: float) -> list[str]:
    """Lines of a table with a row a network: mean ± standard deviation (each seed)."""
    return [
        '| network | mAP | compute, % | with gates, % | least - most, % |',
        '|---|---|---|---|---|',
        *(f'| {name} | {" | ".join(_cells(runs))} |' for name, runs in scores.items()),
        f'| at random | {100 * at_random:.1f} | | | |',
    ]


def _cells(runs: Sequence[Score]) -> list[str]:
    def each(key: str) -> str:
        return Spread.of([100 * getattr(run, key) for run in runs]).text()

    spread = ', '.join(f'{100 * run.least:.0f} - {100 * run.most:.0f}' for run in runs)
    return [each('mean_ap'), each('ratio'), each('whole'), spread]
