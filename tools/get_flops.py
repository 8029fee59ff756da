# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Counts parameters and multiply-adds of a recognizer, stage by stage."""

import argparse
import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

import vared2_mmaction  # noqa: F401  (registers the models and mends the OpenMMLab releases)
from commands.cli import add_config_options, check_out, run_tool
from counting.clips import random_clip, read_videos, views_of_split
from counting.flops import CostMismatchError, measure
from vared2_mmaction.apis import load_model
from vared2_mmaction.apis.config_file import read_config_file


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', metavar='CONFIG', help='path of the config file')
    parser.add_argument(
        'checkpoint', metavar='CHECKPOINT', nargs='?', help='path or URL; default: none'
    )
    clip = parser.add_mutually_exclusive_group()
    clip.add_argument(
        '--shape',
        nargs='+',
        type=int,
        metavar='N',
        help='random clip, C T H W for a Recognizer3D and C H W for a Recognizer2D; default: what '
        'the pipeline of the split makes',
    )
    clip.add_argument(
        '--data', action='store_true', help='count on videos of the data set, not on a random clip'
    )
    parser.add_argument(
        '--num-videos', type=int, default=8, metavar='N', help='videos of --data (default: 8)'
    )
    parser.add_argument(
        '--split', choices=['test', 'val'], default='test', help='whose pipeline and videos to take'
    )
    add_config_options(parser)
    parser.add_argument('--out', metavar='FILE.json', help='write the numbers, in multiply-adds')
    return parser


def count(args: argparse.Namespace) -> dict:
    """Does what the arguments ask for; costs in multiply-adds a clip."""
    if args.num_videos < 1:
        raise ValueError(f'--num-videos {args.num_videos}: expected at least 1')
    if args.out:
        check_out('--out', args.out)
    cfg = read_config_file(args.config, args.cfg_options)
    cfg.load_from = None  # what training starts from is not what is counted
    model, weights = load_model(cfg, args.checkpoint)
    views = views_of_split(cfg, model, args.split)
    source = f'shape of the {args.split} pipeline'
    if args.data:
        table = measure(model, read_videos(cfg, model, args.split, args.num_videos))
        source = f'videos of the {args.split} split'
    else:
        table = measure(model, [[random_clip(model, args.shape, views)]])
        source = 'shape of --shape' if args.shape else source
    return {
        'config': args.config,
        'weights': weights,
        'source': source,
        'views': [views.clips, views.crops] if views else None,
        **table._asdict(),
        'stages': [row._asdict() for row in table.stages],
        'total': table.total._asdict(),
    }


def render(result: dict) -> Table:
    """The table, in GMACs; (min–max) where there are several videos."""
    digits = 3 if result['total']['static'] >= 1e9 else 6
    table = Table('stage', title='GMACs a clip')
    for name in ('parameters', 'static', 'expected', 'executed', 'overhead'):
        table.add_column(name, justify='right', no_wrap=True)
    for row in (*result['stages'], result['total']):
        if row is result['total']:
            table.add_section()
        gmacs = {k: f'{v / 1e9:.{digits}f}' for k, v in row.items() if k != 'stage'}
        expected = gmacs['expected']
        if result['videos'] > 1:
            expected += f' ({gmacs["expected_min"]}–{gmacs["expected_max"]})'
        costs = (gmacs['static'], expected, gmacs['executed'], gmacs['overhead'])
        table.add_row(row['stage'], f'{row["parameters"]:,}', *costs)
    return table


def describe(result: dict, data: bool, split: str) -> str:
    """What was counted, in words."""
    sizes = ' or '.join(' x '.join(map(str, size)) for size in result['clip_sizes'])
    clip = f'{result["videos"]} videos, clips of {sizes}' if data else f'1 clip of {sizes}'
    views = '{} x {} views'.format(*result['views']) if result['views'] else 'unknown views'
    return (
        f'{clip}; a {split} video takes {views} ({result["source"]}; {result["weights"]})\n'
        f'compute ratio {result["compute_ratio"]:.4f} of the static convolutions; gates and cheap '
        f'operations add {100 * result["overhead_ratio"]:.3f} % of the static network'
    )


def print_flops(args: argparse.Namespace) -> None:
    try:
        result = count(args)
    except CostMismatchError as error:
        sys.exit(f'get_flops.py: {error}')
    console = Console()
    console.print(render(result))
    console.print(describe(result, args.data, args.split), highlight=False, markup=False)
    if args.out:
        with open(args.out, 'w') as file:
            json.dump(result, file, indent=2)


def main(argv: Sequence[str] | None = None) -> None:
    run_tool(build_parser(), print_flops, argv)


if __name__ == '__main__':
    main()
