# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Writes the moving-shapes data set, mp4 videos and annotation lists, into a folder."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import fields

from commands.cli import run_tool
from synthetic.motions import MOTIONS
from synthetic.moving_shapes import MovingShapes, make_moving_shapes


def build_parser() -> argparse.ArgumentParser:
    default = MovingShapes()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        'out', metavar='OUT', help='folder of the data set, such as data/moving_shapes'
    )
    parser.add_argument('--train', type=int, default=default.train, help='training videos')
    parser.add_argument('--val', type=int, default=default.val, help='validation videos')
    parser.add_argument('--test', type=int, default=default.test, help='test videos')
    parser.add_argument('--size', type=int, default=default.size, help='side of the frame, pixels')
    parser.add_argument('--frames', type=int, default=default.frames, help='frames a video')
    parser.add_argument('--fps', type=int, default=default.fps, help='frames a second')
    parser.add_argument('--seed', type=int, default=default.seed, help='of everything random')
    parser.add_argument(
        '--repeats',
        type=float,
        default=default.repeats,
        help='most times that a clip shows its motion; above 1, clips differ in speed, and so in '
        'how many of their frames are needed',
    )
    parser.add_argument('--workers', type=int, default=2, help='processes')
    parser.add_argument(
        '--classes',
        nargs='+',
        default=default.classes,
        metavar='NAME',
        help=f'of {", ".join(MOTIONS)}',
    )
    return parser


def make(args: argparse.Namespace) -> None:
    out = args.out
    choices = {field.name: getattr(args, field.name) for field in fields(MovingShapes)}
    choices['classes'] = tuple(args.classes)
    start = time.perf_counter()
    written = make_moving_shapes(out, MovingShapes(**choices), args.workers, progress=True)
    seconds = time.perf_counter() - start
    if written:
        print(f'{out}: {written} videos written in {seconds:.1f} s')
    else:
        print(f'{out}: complete, nothing to do')


def main(argv: Sequence[str] | None = None) -> None:
    run_tool(build_parser(), make, argv)


if __name__ == '__main__':
    main()
