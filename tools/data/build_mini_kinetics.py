# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Makes MMAction2's video lists of Mini-Kinetics-200 from its published split files."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what tools import

from annotations.mini_kinetics import DELIMITERS, build_lists, print_report
from commands.cli import run_tool


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--train-csv', type=Path, required=True, help='for example train_k200.csv')
    parser.add_argument('--val-csv', type=Path, required=True, help='for example val_k200.csv')
    parser.add_argument(
        '--videos', type=Path, nargs='+', required=True, help='folders that hold Kinetics videos'
    )
    parser.add_argument('--out', type=Path, required=True, help='folder to write the lists to')
    parser.add_argument(
        '--delimiter',
        choices=['auto', *DELIMITERS],
        default='auto',
        help='what parts path and label; auto (the default) takes the first of '
        f'{", ".join(DELIMITERS)} that no path contains',
    )
    return parser


def build(args: argparse.Namespace) -> int:
    """The exit status is 1 where a class has no video."""
    report = build_lists(args.train_csv, args.val_csv, args.videos, args.out, args.delimiter)
    print_report(report)
    return 0 if report.complete_enough else 1


def main(argv: Sequence[str] | None = None) -> None:
    run_tool(build_parser(), build, argv)


if __name__ == '__main__':
    main()
