# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Makes pictures and a page of a test's dump: which videos took how much, what layers chose."""

import argparse
import os
from collections.abc import Sequence

from rich.console import Console
from rich.progress import track

import vared2_mmaction  # noqa: F401  (registers the models and mends the OpenMMLab releases)
from commands.cli import add_config_options, check_writable, run_tool
from policy_report import visualize
from vared2_mmaction.apis.config_file import read_config_file


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('dump', metavar='DUMP.pkl', help='of tools/test.py CONFIG CKPT --dump')
    parser.add_argument('config', metavar='CONFIG', help='path of the config file of that test')
    parser.add_argument(
        '--out', metavar='DIR', required=True, help='folder for index.html and the PNG files'
    )
    parser.add_argument(
        '--labels',
        metavar='FILE',
        help='class names, one a line; default: their numbers. For detection those of the actions, '
        'or a label map of AVA; default: that of the config',
    )
    parser.add_argument(
        '--categories',
        type=int,
        default=16,
        metavar='N',
        help='categories to show videos of, evenly spread from the dearest to the cheapest; 0 '
        'opens no video (default: 16)',
    )
    parser.add_argument(
        '--frames', type=int, default=8, metavar='N', help='frames of a video (default: 8)'
    )
    parser.add_argument('--title', help='of the page; default: the name of the config')
    add_config_options(parser)
    return parser


def load(args: argparse.Namespace) -> visualize.Study:
    """Reads what the arguments name."""
    if args.categories < 0:
        raise ValueError(f'--categories {args.categories}: expected 0 or more')
    if args.frames < 1:
        raise ValueError(f'--frames {args.frames}: expected at least 1')
    if os.path.exists(args.out) and not os.path.isdir(args.out):
        raise FileExistsError(f'--out {args.out!r}: expected a folder, this is a file')
    for name in ('dump', 'config'):
        if not os.path.isfile(path := getattr(args, name)):
            raise FileNotFoundError(f'{name.upper()}={path!r}: no such file')
    os.makedirs(args.out, exist_ok=True)
    check_writable('--out', args.out)
    cfg = read_config_file(args.config, args.cfg_options)
    return visualize.load_study(args.dump, cfg, args.labels)


def write_pictures(args: argparse.Namespace) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    study = load(args)
    files, absent = visualize.write_study(
        study,
        args.out,
        args.title or os.path.splitext(os.path.basename(args.config))[0],
        args.categories,
        args.frames,
        lambda videos: track(videos, 'frames', console=console),
    )
    if absent:
        first = f'first {absent[0]!r}'
        console.print(f'{len(absent)} of the videos to show are missing or broken, {first}')
    for file in files:
        console.print(file)


def main(argv: Sequence[str] | None = None) -> None:
    run_tool(build_parser(), write_pictures, argv)


if __name__ == '__main__':
    main()
