# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Sets a trained network to compute budgets without training, and tests it at each."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import vared2_mmaction  # noqa: F401  (registers the models and mends the OpenMMLab releases)
from vared2_mmaction.apis import calibrating
from vared2_mmaction.apis.cli import add_config_options, add_optimize_option, run_tool
from vared2_mmaction.apis.config_file import read_config_file


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


def calibrate(args: argparse.Namespace) -> None:
    if args.num_videos < 2:
        raise ValueError(f'--num-videos {args.num_videos}: expected at least 2')
    for ratio in args.ratios:
        if not 0 < ratio <= 1:
            raise ValueError(f'--ratios {ratio:g}: expected shares of the static compute in (0, 1]')
    cfg = read_config_file(args.config, args.cfg_options)
    out = Path(args.out)
    points = calibrating.calibrate(
        cfg,
        args.checkpoint,
        args.ratios,
        out,
        videos=args.num_videos,
        max_ratio=args.max_ratio,
        from_static=args.from_static,
        optimized=not args.no_optimize,
    )
    (out / 'curve.json').write_text(json.dumps(points, indent=2) + '\n')
    calibrating.print_curve(points)
    calibrating.plot_curve(points, out / 'curve.png')


def main(argv: Sequence[str] | None = None) -> None:
    run_tool(build_parser(), calibrate, argv)


if __name__ == '__main__':
    main()
