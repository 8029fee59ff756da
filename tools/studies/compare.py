# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Compare a dynamic network with its static twin: accuracy, compute and time."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmaction.evaluation import top_k_accuracy
from mmengine.config import Config
from mmengine.runner import Runner
from rich.table import Table
from torch import nn

from policy_report.dump import load_dump
from vared2_mmaction.apis import load_model

from .statistics import Spread


@dataclass
class Result:
    """One row of the comparison; compute a clip."""

    name: str
    top1: float
    gmacs: tuple[float, float, float]
    """Mean, 10th and 90th percentile of videos, gates and cheap operations included."""
    share: tuple[float, float, float]
    """Of the static backbone's multiply-adds, the same three, convolutions only."""
    milliseconds: float
    """Median of a clip of batch size 1."""


def summarise(name: str, dump: str, milliseconds: float, static_gmacs: float) -> Result:
    """Summarise what ``tools/test.py --dump`` wrote.

    Args:
        name: Name of the row.
        dump: The pickle file.
        milliseconds: Median time of a clip.
        static_gmacs: Billions of multiply-adds of a static clip, for networks without gates.
    """
    samples = load_dump(dump)
    scores = [sample['pred_score'].numpy() for sample in samples]
    labels = [int(sample['gt_label']) for sample in samples]
    (top1,) = top_k_accuracy(scores, labels, (1,))
    share = [sample.get('compute_ratio', 1.0) for sample in samples]
    gmacs = [
        sample['compute_gmacs'] + sample['overhead_gmacs']
        if 'compute_gmacs' in sample
        else static_gmacs
        for sample in samples
    ]
    return Result(name, float(top1), _spread(gmacs), _spread(share), milliseconds)


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    low, high = np.percentile(values, [10, 90]).tolist()
    return float(np.mean(values)), low, high


def load_recognizer(config: str, checkpoint: str) -> tuple[nn.Module, Config]:
    """Build a recognizer of a config with the weights of a checkpoint, in evaluation mode."""
    cfg = Config.fromfile(config)
    cfg.load_from = None  # the weights to start training from
    model, _ = load_model(cfg, checkpoint)
    model.eval()
    return model, cfg


def decoded_videos(cfg: Config, number: int) -> list[dict[str, Any]]:
    """The first videos of the test set, decoded, in batches of one."""
    loader = Runner.build_dataloader(
        {**cfg.test_dataloader, 'batch_size': 1, 'num_workers': 0, 'persistent_workers': False}
    )
    return [batch for _, batch in zip(range(number), loader, strict=False)]


@torch.no_grad()
def time_alternately(
    models: Sequence[nn.Module],
    batches: Sequence[dict[str, Any]],
    warmup: int = 5,
    progress: Callable[[], None] = lambda: None,
) -> list[list[float]]:
    """Time networks in turn on the same clips, data preparation left out.

    Args:
        models: The networks.
        batches: Decoded batches, as a data loader gives them.
        warmup: Number of batches that are run first and not counted.
        progress: Called after every batch.

    Returns:
        Seconds of every batch, for each network.
    """
    seconds: list[list[float]] = [[] for _ in models]
    for i, batch in enumerate([*batches[:warmup], *batches]):
        for model, times in zip(models, seconds, strict=True):
            data = model.data_preprocessor(batch, False)  # type: ignore[operator]
            start = time.perf_counter()
            model(**data, mode='predict')
            if i >= warmup:
                times.append(time.perf_counter() - start)
        progress()
    return seconds


def median_ms(seconds: Sequence[float]) -> float:
    """Median in milliseconds."""
    return 1000 * statistics.median(seconds)


def table(results: Sequence[Result], title: str) -> Table:
    """The comparison as a table; compute and time are those of a clip, with percentiles."""
    columns = ('network', 'top-1 %', 'GMACs', '10th - 90th', 'share %', '10th - 90th', 'ms')
    drawn = Table(*columns, title=title)
    for result in results:
        drawn.add_row(
            result.name,
            f'{100 * result.top1:.1f}',
            f'{result.gmacs[0]:.4f}',
            '{:.4f} - {:.4f}'.format(*result.gmacs[1:]),
            f'{100 * result.share[0]:.1f}',
            '{:.1f} - {:.1f}'.format(*(100 * share for share in result.share[1:])),
            f'{result.milliseconds:.1f}',
        )
    return drawn


def over_seeds(seeds: Sequence[int], compared: Sequence[Sequence[Result]]) -> Table:
    """Results of several seeds, and their mean and standard deviation.

    Args:
        seeds: The seeds, at least two.
        compared: Of each seed the static network and the dynamic one.
    """
    columns = ('seed', 'static top-1 %', 'dynamic', 'change', 'share %', 'apart', 'time')
    drawn = Table(
        *columns,
        title='Over seeds: accuracy, share of the static convolutions, from the 10th to the 90th '
        'percentile of clips in points, time relative to the static network',
    )
    rows = [
        (
            100 * static.top1,
            100 * dynamic.top1,
            100 * (dynamic.top1 - static.top1),
            100 * dynamic.share[0],
            100 * (dynamic.share[2] - dynamic.share[1]),
            dynamic.milliseconds / static.milliseconds,
        )
        for static, dynamic in compared
    ]
    forms = ('.1f', '.1f', '+.1f', '.1f', '.1f', '.2f')
    for seed, row in zip(seeds, rows, strict=True):
        drawn.add_row(str(seed), *(f'{v:{form}}' for v, form in zip(row, forms, strict=True)))
    spreads = [Spread.of(values) for values in zip(*rows, strict=True)]
    drawn.add_row(
        'mean',
        *(
            f'{spread.mean:{form}} ± {spread.std:{form.lstrip("+")}}'
            for spread, form in zip(spreads, forms, strict=True)
        ),
    )
    return drawn
