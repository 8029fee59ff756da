# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Draws time and memory of benchmarks over frames, side and batch size."""

import argparse
from collections.abc import Sequence

from benchmarking import scaling
from commands.cli import check_out, run_tool


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('files', metavar='FILE.json', nargs='+', help='of tools/benchmark.py --out')
    parser.add_argument('--out', metavar='FILE.png', required=True, help='figure to write')
    return parser


def plot(args: argparse.Namespace) -> None:
    check_out('--out', args.out, '.png')
    scaling.draw(scaling.load_rows(args.files)).savefig(args.out, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
    run_tool(build_parser(), plot, argv)


if __name__ == '__main__':
    main()
