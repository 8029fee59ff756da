# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Converts the annotation of J-HMDB-21 to the format of AVA."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what tools import

from annotations import jhmdb
from commands.cli import run_tool


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--pickle', type=Path, metavar='JHMDB-GT.pkl', help='tubes')
    source.add_argument('--puppet-mask', type=Path, metavar='FOLDER', help='as published')
    add('--splits', type=Path, metavar='FOLDER', help='as published; goes with --puppet-mask')
    add('--out', type=Path, required=True, metavar='FOLDER', help='to write to')
    add('--split', type=int, default=1, metavar='N', help='1, 2 or 3')
    add('--step', type=int, default=1, metavar='N', help='take every Nth frame for training')
    return parser


def convert(args: argparse.Namespace) -> None:
    if (args.puppet_mask is None) != (args.splits is None):
        raise ValueError('--splits: expected beside --puppet-mask, and only there')
    if args.pickle:
        source = jhmdb.read_pickle(args.pickle, args.split)
    else:
        source = jhmdb.read_published(args.puppet_mask, args.splits, args.split)
    counts = jhmdb.convert(source, args.out, args.split, args.step)
    print(f'{args.out}: {counts["train"]} frames to train on, {counts["test"]} to test')


def main(argv: Sequence[str] | None = None) -> None:
    run_tool(build_parser(), convert, argv)


if __name__ == '__main__':
    main()
