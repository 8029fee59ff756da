# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Controls that tell adapting to the clip from pruning.

A network may owe its compute to options that it would need for no clip at all. So it is tested with
other gate outputs: each clip with those of another clip, and all clips with the mean ones.
What is replaced are the weights V of the options, because networks learn to mix options: with
weight one for each clip's own dearest options they are far worse than they are
(``kind='options'`` measures that).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmengine import dist
from mmengine.runner import Runner
from mmengine.runner.amp import autocast
from scipy import stats
from torch import nn

from vared2_mmaction.engine.network import network_of
from vared2_mmaction.models import dynamic_layers

from .gate_outputs import OWN, SEED, Recording, Replay, replaced

KINDS = ('outputs', 'options')
"""What of the gates is replaced: weights V, or the dearest options that are on, with weight one."""
RESAMPLES = 2000
_MEASURES = {
    'top1': 'correct',
    'ratio': 'compute_ratio',
    'gmacs': 'compute_gmacs',
    'overhead_gmacs': 'overhead_gmacs',
}
"""What is reported, and its name in the predictions of a clip."""


def check_controls(model: nn.Module) -> None:
    """Raise a ValueError if a model has no gates, or does not give clips one class each, before it
    is tested."""
    if not dynamic_layers(model):
        raise ValueError(f'--controls: {type(model).__name__} has no dynamic layer')
    if not hasattr(model, 'cls_head'):
        raise ValueError(f'--controls: {type(model).__name__} does not classify clips')
    if getattr(model.cls_head, 'multi_class', False):
        raise ValueError(
            '--controls: expected one label a clip, found multi_class=True of the head'
        )


@torch.no_grad()
def measure_controls(runner: Runner, kind: str = KINDS[0]) -> dict[str, Any]:
    """Test a runner's network with other gate outputs, by its definition.

    Every process permutes the clips that it tests; the mean is that of all of them.

    Args:
        runner: Whose ``test()`` is done; the test data are read twice more.
        kind: One of ``KINDS``.

    Returns:
        'kind', 'seed' and 'clips'; of each of 'own', 'other' and 'mean' accuracy and compute, means
        over clips; 'spread', the 10th and 90th percentile of the compute ratio of clips; and
        'own - other' and 'own - mean', the difference in accuracy with its 95 % interval.

    Raises:
        ValueError: If the network is not dynamic, or clips are fewer than two, of different
            lengths, or without one label each.
    """
    model = network_of(runner)
    check_controls(model)
    found: dict[str, list] = {OWN: []}
    with Recording(model) as recording:
        for batch in _batches(runner):
            found[OWN] += _test(runner, batch)
    if len(found[OWN]) < 2:
        raise ValueError(f'--controls: expected at least 2 clips, got {len(found[OWN])}')
    outputs = replaced(recording.outputs(), len(found[OWN]), single=kind == 'options')
    if kind == 'outputs':
        del outputs[OWN]
    replays = {name: Replay(model, rows) for name, rows in outputs.items()}
    found |= {name: [] for name in replays}
    for batch in _batches(runner):
        for name, replay in replays.items():
            with replay:
                found[name] += _test(runner, batch)
    size = len(runner.test_loop.dataloader.dataset)
    clips = {name: dist.collect_results(rows, size, 'cpu') for name, rows in found.items()}
    return {'kind': kind, 'seed': SEED, **summarise(clips)} if dist.is_main_process() else {}


@torch.no_grad()
def measure(runner: Runner) -> dict[str, float]:
    """Test a runner's network, by its definition, in this process alone.

    Returns:
        Accuracy and compute, means over clips: 'top1', 'ratio', 'gmacs' and 'overhead_gmacs'.
    """
    return _means(np.asarray([row for batch in _batches(runner) for row in _test(runner, batch)]))


def _means(table: np.ndarray) -> dict[str, float]:
    return dict(zip(_MEASURES, table.mean(0).tolist(), strict=True))


def _batches(runner: Runner) -> Any:
    network_of(runner).eval()
    return runner.test_loop.dataloader


def _test(runner: Runner, batch: Any) -> list[tuple[float, ...]]:
    """Of each clip whether it is classified correctly, and its compute."""
    with autocast(enabled=getattr(runner.test_loop, 'fp16', False)):
        samples = runner.model.test_step(batch)
    rows, (_, *compute) = [], _MEASURES.values()
    for sample in samples:
        if sample.gt_label.numel() != 1 or int(sample.gt_label) < 0:
            raise ValueError('--controls: expected clips with one label each')
        correct = int(sample.pred_score.argmax()) == int(sample.gt_label)
        rows.append((float(correct), *(float(sample.get(key)) for key in compute)))
    return rows


def summarise(clips: Mapping[str, list[tuple[float, ...]]]) -> dict[str, Any]:
    """What :func:`measure_controls` returns, of a row of measures for each clip and control."""
    tables = {name: np.asarray(rows, dtype=float) for name, rows in clips.items()}
    own = tables[OWN]
    means = {name: _means(table) for name, table in tables.items()}
    differences = {
        f'{OWN} - {name}': interval(own[:, 0] - table[:, 0])
        for name, table in tables.items()
        if name != OWN
    }
    spread = np.percentile(own[:, 1], [10, 90]).tolist()
    return {'clips': len(own), **means, 'spread': spread, **differences}


def interval(differences: np.ndarray) -> dict[str, float]:
    """Mean of differences between pairs, and its 95 % interval by the paired bootstrap.

    Args:
        differences: (clips,), at least two.

    Returns:
        'mean', 'low' and 'high'.
    """
    found = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        method='percentile',
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return {'mean': float(differences.mean()), 'low': float(found.low), 'high': float(found.high)}
