# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Tests a checkpoint: MMAction2's flags, with vared2_mmaction registered.

Flags, their defaults and their choices are those of MMAction2 1.2.0, so that its documentation and
scripts written for it apply; ours come on top.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine import dist
from mmengine.config import Config, ConfigDict
from rich.console import Console
from rich.table import Table

import vared2_mmaction  # noqa: F401  (registers the models and mends the OpenMMLab releases)
from commands import cli
from commands.check_data import check_run
from commands.testing import OptimizeHook, metrics_of, set_metrics
from controls.gate_outputs import MEAN, OTHER, OWN
from controls.measure import KINDS, check_controls, measure_controls
from vared2_mmaction.apis.config_file import merge_options, read_config_file
from vared2_mmaction.checkpoints.loading import whole_networks
from vared2_mmaction.engine.network import network_of

ABOUT = {OWN: 'its own', OTHER: "another clip's", MEAN: 'the mean of all clips'}


def stock_parser() -> argparse.ArgumentParser:
    """The parser with MMAction2's flags."""
    parser = argparse.ArgumentParser(description='Test an action recognizer')
    cli.add_common_arguments(parser)
    parser.add_argument('checkpoint', help='path or URL of the checkpoint')
    parser.add_argument('--dump', metavar='FILE.pkl', help='write all predictions to this pickle')
    parser.add_argument('--show-dir', help='folder to save frames with their predictions in')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument(
        '--interval', type=int, default=1, help='draw every INTERVAL-th sample (default: 1)'
    )
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds a window stays (default: 2)'
    )
    return parser


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Applies what :func:`stock_parser` parsed to ``cfg``, in place.

    ``--cfg-options`` replace what the drawing flags set, and are themselves replaced by
    ``--work-dir``, ``--dump`` and the checkpoint. Other than in MMAction2, ``--show`` and
    ``--show-dir`` do not need a ``VisualizationHook`` in the config, and ``--cfg-options
    test_evaluator.x=y`` works together with ``--dump``.

    Raises:
        ValueError: If the config cannot do what a flag asks for.
    """
    if args.show or args.show_dir is not None:
        enable_drawing(cfg, args)
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        merge_options(cfg, args.cfg_options)
    if args.dump is not None:
        dump_predictions(cfg, args.dump)
    cfg.work_dir = cli.resolve_work_dir(cfg, args)
    cfg.load_from = args.checkpoint
    return cfg


def enable_drawing(cfg: Config, args: argparse.Namespace) -> None:
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    hook = hooks.get('visualization')
    if hook is None:
        hook = hooks['visualization'] = ConfigDict(type='VisualizationHook')
    hook.update(
        enable=True,
        show=args.show,
        wait_time=args.wait_time,
        out_dir=args.show_dir,
        interval=args.interval,
    )
    if cfg.get('visualizer') is None:
        cfg.visualizer = {'type': 'ActionVisualizer', 'vis_backends': [{'type': 'LocalVisBackend'}]}


def dump_predictions(cfg: Config, path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)  # as the dump would, after the test
    cli.check_out('--dump', path, '.pkl', '.pickle')
    set_metrics(cfg, [*metrics_of(cfg), {'type': 'DumpResults', 'out_file_path': path}])


def test(args: argparse.Namespace) -> None:
    cfg = read_config_file(args.config)
    merge_args(cfg, args)
    check_run(cfg, 'test')
    if args.controls:
        cfg.compile = False  # compiled code does not see what takes the place of gate outputs
    runner = cli.build_runner(cfg)
    if args.controls:
        check_controls(network_of(runner))
    if not args.no_optimize:
        runner.register_hook(OptimizeHook())
    with whole_networks():  # what is tested must not be as initialised
        runner.test()
    if args.controls:
        found = measure_controls(runner, args.controls)
        if dist.is_main_process():
            Console().print(report_controls(found, cfg.work_dir))
    cli.leave_process_group()


def report_controls(found: Mapping[str, Any], folder: str | Path) -> Table:
    """Write what :func:`measure_controls` found as ``controls.json``, and make a table of it."""
    (Path(folder) / 'controls.json').write_text(json.dumps(found, indent=1) + '\n')
    low, high = (100 * share for share in found['spread'])
    notes = [f'compute of clips, 10th to 90th percentile: {low:.1f} - {high:.1f} %']
    for name in (OTHER, MEAN):
        gain = {key: 100 * value for key, value in found[f'{OWN} - {name}'].items()}
        notes.append(
            f'top-1 of its own minus {ABOUT[name]}: {gain["mean"]:+.1f} points, 95 % interval '
            f'{gain["low"]:+.1f} to {gain["high"]:+.1f}'
        )
    table = Table(
        f'{found["kind"]} of a clip',
        'top-1 %',
        'compute %',
        'GMACs',
        'GMACs with gates',
        title=f'Controls, {found["clips"]} clips',
        caption='\n'.join(notes),
    )
    for name, about in ABOUT.items():
        row = found[name]
        table.add_row(
            about,
            f'{100 * row["top1"]:.1f}',
            f'{100 * row["ratio"]:.1f}',
            f'{row["gmacs"]:.4f}',
            f'{row["gmacs"] + row["overhead_gmacs"]:.4f}',
        )
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = stock_parser()
    cli.add_optimize_option(parser)
    parser.add_argument(
        '--controls',
        nargs='?',
        const=KINDS[0],
        choices=KINDS,
        help="also test each clip with another clip's and with the mean gate outputs "
        '(outputs, the default), or with the options that they choose, each with weight one '
        '(options); writes controls.json into the work folder',
    )
    cli.run_tool(parser, test, argv)


if __name__ == '__main__':
    main()
