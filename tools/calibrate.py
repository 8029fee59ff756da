# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Sets a trained network to compute budgets without training, and tests it at each."""

import argparse
import copy
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.runner import save_checkpoint
from rich.console import Console
from rich.table import Table
from torch import Tensor

import vared2_mmaction  # noqa: F401  (registers the models and mends the OpenMMLab releases)
from commands.check_data import check_run
from commands.cli import add_config_options, add_optimize_option, build_runner, run_tool
from commands.testing import OptimizeHook, metrics_of, set_metrics, training_clips
from vared2_mmaction import force_policy
from vared2_mmaction.apis.config_file import read_config_file
from vared2_mmaction.apis.weights import check_checkpoint, load_weights
from vared2_mmaction.budget import Calibration, start_from_static
from vared2_mmaction.datasets.pipelines import type_name

_OF_TRAINING = (
    *(f'{split}_{part}' for split in ('train', 'val') for part in ('dataloader', 'cfg')),
    'val_evaluator',
    'optim_wrapper',
    'param_scheduler',
    'custom_hooks',
)
Point = dict[str, Any]
"""A line of the curve: ``asked``, ``calibration`` (ratio of the calibration clips),
``checkpoint``, and all metrics of the test that are a number."""
_NO_ACCURACY = {'ComputeMetric', 'ConfusionMatrix', 'DumpResults'}
"""Metrics that say nothing about accuracy in one number."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', metavar='CONFIG', help='path of the config file')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='path or URL of the checkpoint')
    parser.add_argument(
        '--ratios',
        nargs='+',
        type=float,
        required=True,
        metavar='RATIO',
        help='mean compute over the calibration clips, shares of the static compute',
    )
    parser.add_argument(
        '--max-ratio', type=float, default=1.0, metavar='RATIO', help='what no clip may exceed'
    )
    parser.add_argument(
        '--from-static',
        action='store_true',
        help='the checkpoint is that of the static network: fit its cheap operations to the clips',
    )
    parser.add_argument(
        '--num-videos',
        type=int,
        default=256,
        metavar='N',
        help='training videos to calibrate on, read as those of the test; no label is used '
        '(default: 256)',
    )
    parser.add_argument(
        '--out', default='work_dirs/calibrate', metavar='DIR', help='for checkpoints and the curve'
    )
    add_config_options(parser)
    add_optimize_option(parser)
    return parser


def calibrate_and_test(cfg: Config, args: argparse.Namespace) -> list[Point]:
    """Calibrate and test, from the dearest ratio to the cheapest.

    A checkpoint is written for each ratio, which ``tools/test.py`` loads with the same config, and
    after each all points are, as ``curve.json``.

    Returns:
        A point for the network as it was loaded, and one for each ratio.

    Raises:
        ValueError: If a ratio is out of reach; names cheapest and dearest. Or if no metric of the
            test is a number of accuracy.
        FileNotFoundError: If a file is missing.
    """
    checkpoint, out = args.checkpoint, Path(args.out)
    check_checkpoint(checkpoint)
    cfg.load_from, cfg.resume = None, False
    check_run(cfg, 'train', 'test')
    metrics = _metrics(cfg)
    out.mkdir(parents=True, exist_ok=True)
    cfg.work_dir = str(out)
    set_metrics(cfg, metrics)
    loader = training_clips(cfg, args.num_videos)
    # Loaders that get a batch_sampler have no size of their own.
    at_once, in_training = loader.batch_size, cfg.train_dataloader.get('batch_size')
    for key in _OF_TRAINING:  # nothing is trained
        cfg[key] = None
    runner = build_runner(cfg)
    model = runner.model
    if at_once and in_training and at_once < in_training:
        runner.logger.warning(
            f'test_dataloader.batch_size={at_once}: BatchNorm is estimated over batches of so few '
            f'videos, and had {in_training} in training; --cfg-options '
            f'test_dataloader.batch_size={in_training} gives it as many'
        )
    if args.from_static != ('lacks gates' in load_weights(model, checkpoint)):
        found = 'dynamic' if args.from_static else 'static'
        raise ValueError(
            f'CHECKPOINT={checkpoint!r} is of a {found} network; --from-static is for static ones'
        )
    if args.from_static:
        start_from_static(model, loader)
    loaded = copy.deepcopy(model.state_dict())
    calibration = Calibration(model, loader, args.max_ratio)
    for ratio in sorted(args.ratios):  # what is out of reach is said before a test takes hours
        calibration.check(ratio)
    model.load_state_dict(loaded)
    with force_policy(model) if args.from_static else nullcontext():
        points: list[Point] = [{'asked': None, **_numbers(runner.test())}]
    _accuracy(points[0])  # is there one, before a network is tested again and again
    if not args.no_optimize:
        runner.register_hook(OptimizeHook())
    for ratio in sorted(args.ratios, reverse=True):
        reached = calibration.set(ratio)
        path = out / f'{Path(checkpoint).stem}_ratio-{ratio:g}.pth'
        save_checkpoint({'state_dict': model.state_dict(), 'meta': {'ratio': reached}}, str(path))
        point = {'asked': ratio, 'calibration': reached, 'checkpoint': str(path)}
        points.append({**point, **_numbers(runner.test())})
        (out / 'curve.json').write_text(json.dumps(points, indent=2) + '\n')
    return points


def _metrics(cfg: Config) -> list[dict]:
    """Metrics of the test of a config, with that of compute by its own name; a ValueError if none
    is of accuracy."""
    found = metrics_of(cfg)
    names = [type_name(metric.get('type')) for metric in found]
    if _NO_ACCURACY.issuperset(names):
        raise ValueError(f'test_evaluator: expected a metric of accuracy, found {names}')
    others = [m for m, name in zip(found, names, strict=True) if name != 'ComputeMetric']
    return [*others, {'type': 'mmaction.ComputeMetric'}]


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics that are one number, which a matrix of confusions is not."""
    numbers = {key: value for key, value in metrics.items() if isinstance(value, Real | Tensor)}
    return {key: float(v) for key, v in numbers.items() if getattr(v, 'ndim', 0) == 0}


def _accuracy(point: Point) -> tuple[str, float]:
    """The first metric that is not of compute; a ValueError if there is none."""
    own = ('asked', 'calibration', 'checkpoint')
    for key, value in point.items():
        if key not in own and not key.startswith('compute/'):
            return key, value
    raise ValueError(f'test_evaluator: expected a metric that is a number, found {list(point)}')


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


def calibrate(args: argparse.Namespace) -> None:
    if args.num_videos < 2:
        raise ValueError(f'--num-videos {args.num_videos}: expected at least 2')
    for ratio in args.ratios:
        if not 0 < ratio <= 1:
            raise ValueError(f'--ratios {ratio:g}: expected shares of the static compute in (0, 1]')
    if not max(args.ratios) <= args.max_ratio <= 1:
        raise ValueError(
            f'--max-ratio {args.max_ratio:g}: expected a share from {max(args.ratios):g}, the '
            'largest of --ratios, to 1'
        )
    cfg = read_config_file(args.config, args.cfg_options)
    points = calibrate_and_test(cfg, args)
    print_curve(points)
    plot_curve(points, Path(args.out) / 'curve.png')


def main(argv: Sequence[str] | None = None) -> None:
    run_tool(build_parser(), calibrate, argv)


if __name__ == '__main__':
    main()
