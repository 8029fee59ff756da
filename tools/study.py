# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Trains and tests what the study compares, and writes its report.

Killed and started again, it goes on from the last checkpoints. Everything is written into --out:
a folder for each run, results.json, results.md and results.png.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from commands.cli import run_tool
from studies import report, study
from studies.footage import Footage
from studies.schedule import RESULTS, STALE, Resources, RunFailedError, Scheduler
from synthetic.moving_shapes import MovingShapes

CONFIGS = Path(__file__).resolve().parent.parent / 'configs' / 'study'


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('--out', type=Path, help='folder of runs and results')
    what.add_argument(
        '--report', type=Path, metavar='DIR', help='write the report of the results in DIR again'
    )
    parser.add_argument(
        '--page',
        type=Path,
        default=Path('docs') / report.PAGE,
        help='with --report: what to write, with a figure beside it (default: docs/results.md)',
    )
    parser.add_argument('--scale', choices=study.SCALES, default='small')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument(
        '--variants',
        nargs='+',
        default=list(study.VARIANTS),
        metavar='NAME',
        help=f'of {", ".join(study.VARIANTS)}; what they need is added (default: all)',
    )
    parser.add_argument('--jobs', type=int, default=2, help='runs side by side (default: 2)')
    parser.add_argument('--threads', type=int, default=1, help='of each run (default: 1)')
    parser.add_argument(
        '--workers', type=int, default=1, help='processes of each that decode (default: 1)'
    )
    parser.add_argument(
        '--data',
        type=Path,
        help='folder of the video set, made where it is missing (default: data/study_SCALE)',
    )
    parser.add_argument(
        '--data-root',
        type=Path,
        metavar='DIR',
        help='videos of your own instead: a folder with train.txt and test.txt, lines of '
        '"path label", and videos that they name, in it or in its folder videos',
    )
    parser.add_argument(
        '--stale',
        choices=STALE,
        default='error',
        help='what to do about runs in --out that were made with other settings (default: error)',
    )
    parser.add_argument(
        '--budget',
        type=float,
        help='of dynamic networks but the pruned_ ones, a share of the compute (default: 0.4)',
    )
    trial = parser.add_argument_group('to try it out')
    trial.add_argument(
        '--epochs', type=int, nargs=2, metavar=('STATIC', 'DYNAMIC'), help='of the two phases'
    )
    trial.add_argument(
        '--videos', type=int, nargs=3, metavar=('TRAIN', 'VAL', 'TEST'), help='of the video set'
    )
    return parser


def make_scheduler(args: argparse.Namespace, console: Console) -> Scheduler:
    scale = study.SCALES[args.scale]
    videos: MovingShapes | Footage = scale.videos
    if args.data_root is not None:
        videos = Footage(args.data_root)
        if args.videos is not None or args.data is not None:
            raise ValueError('--data-root: expected without --videos and --data')
    elif args.videos is not None:
        videos = replace(
            scale.videos, **dict(zip(('train', 'val', 'test'), args.videos, strict=True))
        )
    plan = study.Study(
        CONFIGS,
        videos,
        scale.options,
        tuple(args.seeds),
        tuple(args.variants),
        None if args.epochs is None else tuple(args.epochs),
        args.budget,
    )
    data = args.data_root or args.data or Path(f'data/study_{args.scale}')
    resources = Resources(args.jobs, args.threads, args.workers)
    return Scheduler(plan, args.out, data, resources, args.stale, console, command(args))


def command(args: argparse.Namespace) -> str:
    """The command that makes the same results, without folders and what is the default."""
    parts = ['python tools/study.py --out work_dirs/study']
    default = build_parser().parse_args(['--out', 'work_dirs/study'])
    for name in ('scale', 'seeds', 'variants', 'budget', 'epochs', 'videos'):
        if (value := getattr(args, name)) != getattr(default, name):
            words = value if isinstance(value, list) else [value]
            parts.append(' '.join([f'--{name}', *map(str, words)]))
    if args.data_root is not None:
        parts.append(f'--data-root {args.data_root.resolve().name}')
    return ' '.join(parts)


def run_study(args: argparse.Namespace) -> int | None:
    console = Console()
    try:
        if args.report is None:
            make_scheduler(args, console).run()
    except (RunFailedError, KeyboardInterrupt) as error:
        failed = isinstance(error, RunFailedError)
        said = error if failed else 'interrupted; the same command goes on'
        print(f'study.py: {said}', file=sys.stderr)
        return 1 if failed else 130
    page = args.page if args.out is None else args.out / report.PAGE
    report.write(report.load((args.report or args.out) / RESULTS), page)
    console.print(f'{page} is written', soft_wrap=True)
    return None


def main(argv: Sequence[str] | None = None) -> None:
    run_tool(build_parser(), run_study, argv)


if __name__ == '__main__':
    main()
