# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Writes the moving-boxes data set, videos annotated as AVA is, into a folder."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from commands.cli import run_tool
from synthetic.moving_boxes import MovingBoxes, make_moving_boxes

HELP = dict(
    train='training videos',
    val='validation videos',
    test='test videos',
    size='side of the frame, pixels',
    frames='frames a video',
    fps='frames a second',
    seed='of everything random',
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('out', metavar='OUT', type=Path, help='folder, such as data/moving_boxes')
    for field in fields(MovingBoxes):
        parser.add_argument(
            f'--{field.name}', type=int, default=field.default, help=HELP[field.name]
        )
    parser.add_argument('--workers', type=int, default=2, help='processes')
    return parser


def make(args: argparse.Namespace) -> None:
    choices = {field.name: getattr(args, field.name) for field in fields(MovingBoxes)}
    written = make_moving_boxes(args.out, MovingBoxes(**choices), args.workers, progress=True)
    print(f'{args.out}: {written or "complete, no"} videos written')


def main(argv: Sequence[str] | None = None) -> None:
    run_tool(build_parser(), make, argv)


if __name__ == '__main__':
    main()
