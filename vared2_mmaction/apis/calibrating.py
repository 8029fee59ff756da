# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Set a config's network to budgets, test it at each, and show accuracy over compute."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner, save_checkpoint
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Subset

from ..budget import Calibration, start_from_static
from ..models.policy import force_policy
from .check import check_config
from .cli import build_runner
from .optimizing import OptimizeHook
from .weights import check_checkpoint, load_weights

_OF_TRAINING = (
    *(f'{split}_{part}' for split in ('train', 'val') for part in ('dataloader', 'cfg')),
    'val_evaluator',
    'optim_wrapper',
    'param_scheduler',
    'custom_hooks',
)
Point = dict[str, Any]
"""A line of the curve: ``asked``, ``calibration`` (ratio of the calibration clips),
``checkpoint``, and all metrics of the test."""


def calibrate(
    cfg: Config,
    checkpoint: str,
    ratios: Sequence[float],
    out: Path,
    videos: int = 256,
    max_ratio: float = 1.0,
    from_static: bool = False,
    optimized: bool = True,
) -> list[Point]:
    """Calibrate and test, from the dearest ratio to the cheapest.

    Args:
        cfg: Config of a dynamic network with training and test data.
        checkpoint: Path or URL.
        ratios: Mean compute ratios of the calibration clips.
        out: Folder, which a checkpoint is written to for each ratio; ``tools/test.py`` loads it
            with the same config.
        videos: Number of training videos to calibrate on, evenly spread over their list.
        max_ratio: What no clip may exceed.
        from_static: Whether the checkpoint is that of the static network.
        optimized: Whether an optimised copy is tested.

    Returns:
        A point for the network as it was loaded, and one for each ratio.

    Raises:
        ValueError: If a ratio is out of reach; names cheapest and dearest.
        FileNotFoundError: If a file is missing.
    """
    check_checkpoint(checkpoint)
    cfg.load_from, cfg.resume = None, False
    check_config(cfg, 'train', 'test')
    out.mkdir(parents=True, exist_ok=True)
    cfg.work_dir = str(out)
    evaluator: Any = cfg.test_evaluator
    metrics = list(evaluator) if isinstance(evaluator, list | tuple) else [evaluator]
    if 'ComputeMetric' not in [metric['type'] for metric in metrics]:
        cfg.test_evaluator = [*metrics, {'type': 'ComputeMetric'}]
    loader = calibration_loader(cfg, videos)
    for key in _OF_TRAINING:  # nothing is trained
        cfg[key] = None
    runner = build_runner(cfg)
    model = runner.model
    if from_static != ('lacks gates' in load_weights(model, checkpoint)):
        found = 'dynamic' if from_static else 'static'
        raise ValueError(
            f'CHECKPOINT={checkpoint!r} is of a {found} network; --from-static is for static ones'
        )
    with force_policy(model) if from_static else nullcontext():
        points: list[Point] = [{'asked': None, **runner.test()}]
    if optimized:
        runner.register_hook(OptimizeHook())
    if from_static:
        start_from_static(model, loader)
    calibration = Calibration(model, loader, max_ratio)
    for ratio in sorted(ratios):  # what is out of reach is said before hours are spent
        calibration.check(ratio)
    for ratio in sorted(ratios, reverse=True):
        reached = calibration.set(ratio)
        path = out / f'{Path(checkpoint).stem}_ratio-{ratio:g}.pth'
        save_checkpoint({'state_dict': model.state_dict(), 'meta': {'ratio': reached}}, str(path))
        point = {'asked': ratio, 'calibration': reached, 'checkpoint': str(path)}
        points.append({**point, **runner.test()})
    return points


def calibration_loader(cfg: Config, videos: int) -> DataLoader:
    """Batches of training videos, read and collated as those of the test; the same every time."""
    init_default_scope(cfg.get('default_scope') or 'mmaction')
    train = cfg.train_dataloader.dataset
    while 'pipeline' not in train and 'dataset' in train:
        train = train.dataset  # repeated
    pipeline = cfg.test_dataloader.dataset.pipeline
    dataset = DATASETS.build({**train, 'pipeline': pipeline, 'test_mode': True})
    chosen = np.linspace(0, len(dataset) - 1, min(videos, len(dataset))).round().astype(int)
    wanted = {**cfg.test_dataloader, 'dataset': Subset(dataset, chosen.tolist())}
    wanted['sampler'] = {'type': 'DefaultSampler', 'shuffle': False}
    return Runner.build_dataloader(wanted)


def _accuracy(point: Point) -> tuple[str, float]:
    """The first metric that is not of compute."""
    own = ('asked', 'calibration', 'checkpoint')
    return next((k, v) for k, v in point.items() if k not in own and not k.startswith('compute/'))


def print_curve(points: Sequence[Point]) -> None:
    """Print a table of accuracy over compute."""
    name = _accuracy(points[0])[0]
    table = Table('ratio asked', title='accuracy over compute, test videos')
    for column in (name, 'ratio', 'least', 'most', 'GMACs a view', 'ratio, calibration clips'):
        table.add_column(column, justify='right')
    keys = 'ratio', 'ratio_min', 'ratio_max', 'gmacs'
    for point in points:
        numbers = [f'{_accuracy(point)[1]:.4f}', *(f'{point[f"compute/{k}"]:.3f}' for k in keys)]
        reached = point.get('calibration')
        asked = 'as loaded' if point['asked'] is None else f'{point["asked"]:g}'
        table.add_row(asked, *numbers, '' if reached is None else f'{reached:.3f}')
    Console().print(table)


def plot_curve(points: Sequence[Point], path: Path) -> None:
    """Draw accuracy over compute; a bar reaches from the clip with least to that with most."""
    figure = Figure(figsize=(6, 4), layout='constrained')
    axes = figure.subplots()
    for name, marker, chosen in (('as loaded', 's', points[:1]), ('calibrated', 'o', points[1:])):
        ratio, low, high = (
            np.array([point[f'compute/ratio{end}'] for point in chosen])
            for end in ('', '_min', '_max')
        )
        accuracy = [_accuracy(point)[1] for point in chosen]
        reach = np.maximum((ratio - low, high - ratio), 0)  # the mean of equals may be rounded
        axes.errorbar(ratio, accuracy, xerr=reach, marker=marker, label=name, capsize=2)
    axes.set(xlabel='compute ratio, mean over test videos', ylabel=_accuracy(points[0])[0])
    axes.legend()
    figure.savefig(path, dpi=150)
