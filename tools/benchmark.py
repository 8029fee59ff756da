# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Times a dynamic network against the stock one, side by side and with the same help."""

import argparse
import datetime
import functools
import itertools
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.fileio import put
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

import vared2_mmaction  # noqa: F401  (registers the models and mends the OpenMMLab releases)
from benchmarking import benchmark
from benchmarking.batches import Batch, clip_of, read_batches
from benchmarking.environment import processor, versions
from commands.cli import add_config_options, check_out, run_tool
from counting.clips import views_of_split
from vared2_mmaction.apis import load_model
from vared2_mmaction.apis.config_file import read_config_file
from vared2_mmaction.deploy import keep_freed_memory
from vared2_mmaction.executors import BACKENDS
from vared2_mmaction.executors.cpu.library import missing_tool
from vared2_mmaction.models import dynamic_layers
from vared2_mmaction.models.static import is_detector

PROFILED = 7
"""Operations that are printed of a profile, the longest."""
POLICIES = {
    'infer': ['full', 'channel=1,temporal=1', 'mixed', 'learned'],
    'train': ['learned', 'pruned:channel=1,temporal=0'],
}
"""Rows that are taken by default."""
NEEDS = {
    'cpu': '--device cpu, --dtype float32 and no --compile',
    'cuda': '--device cuda and --mode infer',
}
"""What executors but the eager one need."""
GATED = ('learned', 'pruned')
"""What policies begin with that leave something to the gates."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add('config', metavar='CONFIG', help='path of the config file')
    add('checkpoint', metavar='CHECKPOINT', nargs='?', help='path or URL')
    policies = (
        'full, channel=I,temporal=J (or one of the two), mixed (drawn), learned (gates), or '
        'pruned:channel=I,temporal=J, with no options left but these; I+ leaves the cheaper ones '
        'too; None takes what suits the mode'
    )
    add('--policy', nargs='+', metavar='POLICY', help=policies)
    add('--batch-sizes', nargs='+', type=int, default=[1, 8], metavar='N', help='videos at a time')
    clips = parser.add_mutually_exclusive_group()
    shapes = 'clip, C T H W; may be given several times; None takes what the test pipeline makes'
    clips.add_argument('--shape', nargs='+', type=int, action='append', metavar='N', help=shapes)
    data = 'take clips of the test set, not noise, on which learned policies say nothing of videos'
    clips.add_argument('--data', action='store_true', help=data)
    add('--num-videos', type=int, default=8, metavar='N', help='videos of --data')
    add('--device', choices=['cpu', 'cuda'], default='cpu', help='where to run')
    add('--dtype', choices=list(benchmark.DTYPES), default='float32', help='precision')
    modes = 'infer: a prediction; train: a whole step'
    add('--mode', choices=['infer', 'train'], default='infer', help=modes)
    add('--runs', type=int, default=20, metavar='N', help='timed runs of each network')
    add('--threads', type=int, metavar='N', help="CPU threads; None leaves PyTorch's choice")
    add('--seed', type=int, default=0, metavar='N', help='of clips, labels and mixed policies')
    unhelped = 'leave out the stock network exactly as MMAction2 runs it'
    add('--no-unhelped', action='store_true', help=unhelped)
    executor = (
        'what executes layers; auto takes what optimize() would; in training cpu mixes options in '
        'C++'
    )
    add('--executor', choices=['auto', 'eager', *NEEDS], default='auto', help=executor)
    compiled = 'in training, compile both backbones with torch.compile'
    add('--compile', nargs='?', const='inductor', metavar='BACKEND', help=compiled)
    add(
        '--profile', action='store_true', help='tell what the time goes into, of inference on a CPU'
    )
    add('--out', metavar='FILE.json', help='write the rows, again after every row')
    add_config_options(parser)
    return parser


def check_numbers(args: argparse.Namespace) -> None:
    """Find what is wrong with the arguments before a network is built."""
    numbers = [('--runs', args.runs), ('--num-videos', args.num_videos)]
    numbers += [*(('--batch-sizes', size) for size in args.batch_sizes)]
    if args.threads is not None:
        numbers.append(('--threads', args.threads))
    for option, number in numbers:
        if number < 1:
            raise ValueError(f'{option} {number}: expected at least 1')
    if not 0 <= args.seed < 2**32:
        raise ValueError(f'--seed {args.seed}: expected a number from 0 to 2^32 - 1')
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('--device cuda: expected a GPU, and PyTorch finds none')
    if args.compile and args.mode != 'train':
        raise ValueError('--compile: expected --mode train')
    args.executor = choose_executor(args)
    if args.profile and (args.device, args.mode) != ('cpu', 'infer'):
        raise ValueError('--profile: expected --device cpu and --mode infer')
    if args.out:
        check_out('--out', args.out)


def choose_executor(args: argparse.Namespace) -> str:
    """The executor that is asked for, or the one that suits."""
    on_cpu, train = args.device == 'cpu', args.mode == 'train'
    suited = {
        'cpu': on_cpu and args.dtype == 'float32' and not args.compile,
        'cuda': not on_cpu and not train,
        'eager': True,
    }
    available = {name: name in BACKENDS and BACKENDS[name].is_available() for name in NEEDS}
    available['eager'] = True
    if args.executor == 'auto':
        return next(name for name, suits in suited.items() if suits and available[name])
    if not suited[args.executor]:
        raise ValueError(f'--executor {args.executor}: expected {NEEDS[args.executor]}')
    if not available[args.executor]:
        missing = missing_tool() if args.executor == 'cpu' else 'Triton'
        raise ValueError(f'--executor {args.executor}: there is no {missing}')
    return args.executor


def prepare(args: argparse.Namespace) -> tuple[nn.Module, list[benchmark.Case], tuple[Batch, ...]]:
    """The dynamic network of the arguments, the rows to take, and the videos of --data."""
    check_numbers(args)
    policies = [benchmark.parse_policy(text) for text in args.policy or POLICIES[args.mode]]
    cfg = read_config_file(args.config, args.cfg_options)
    cfg.load_from = None  # what training starts from is not what is timed
    model, _ = load_model(cfg, args.checkpoint)
    if not dynamic_layers(model):
        raise ValueError(
            f'CONFIG={args.config!r}: expected a dynamic network, to be timed against the stock '
            f'one behind it; {cfg.model.backbone.type} has no dynamic layer'
        )
    if is_detector(model) and args.mode == 'infer' and max(args.batch_sizes) > 1:
        raise ValueError('--batch-sizes: expected 1, all that a detector takes in a test')
    videos: tuple[Batch, ...] = ()
    if args.data:
        videos = read_batches(cfg, model, args.num_videos)
        if max(args.batch_sizes) > len(videos):
            found = f'{len(videos)}, the videos of --data'
            raise ValueError(f'--batch-sizes {max(args.batch_sizes)}: expected at most {found}')
        shapes = [clip_of(model, videos[0])]
    else:
        views = views_of_split(cfg, model, 'test')
        shapes = [benchmark.clip_shape(model, shape, views) for shape in args.shape or [None]]
    cases = itertools.product(policies, args.batch_sizes, shapes)
    return model, [benchmark.Case(*case) for case in cases], videos


def take_rows(
    args: argparse.Namespace,
    model: nn.Module,
    cases: Sequence[benchmark.Case],
    videos: tuple[Batch, ...],
    command: str,
) -> dict[str, Any]:
    """Measure row after row; the file of --out is whole after each of them."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    kept = args.device == 'cpu' and keep_freed_memory()
    options = benchmark.Options(
        args.mode,
        args.device,
        args.dtype,
        args.runs,
        args.seed,
        () if args.no_unhelped else benchmark.RIVALS,
        args.executor,
        args.compile,
        args.profile,
        videos,
    )
    where = environment(args.device, command) | {'freed_memory_kept': kept}
    report: dict[str, Any] = {'environment': where, 'rows': []}
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task('runs', total=len(cases) * (benchmark.WARMUP + args.runs))
        for case in cases:
            shape = ' x '.join(map(str, case.shape))
            row = f'{case.policy.name}, batch size {case.batch_size}, {shape}'
            progress.update(task, description=row)
            report['rows'].append(
                benchmark.run_case(model, case, options, lambda: progress.advance(task))
            )
            if args.out:
                write_report(args.out, report)
    return report


def environment(device: str, command: str) -> dict[str, Any]:
    """Where and with what the rows are taken."""
    return {
        'machine': processor(),
        'gpu': torch.cuda.get_device_name() if device == 'cuda' else None,
        'cores': os.cpu_count(),
        'threads': torch.get_num_threads(),
        'versions': versions(),
        'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        'command': command,
    }


def write_report(path: str, report: Mapping[str, Any]) -> None:
    """Write the report; whoever stops the program finds the last whole one."""
    put(json.dumps(report, indent=2, allow_nan=False).encode(), path)


def render(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows as a table of ratios, and times of the stock network and of ours."""
    first = rows[0]
    title = f'{first["mode"]}, {first["device"]}, {first["dtype"]}, {first["threads"]} threads'
    title = f'{title}, median of {first["runs"]} runs; both: {", ".join(first["help"])}'
    own = f'; ours: {", ".join(first["own_help"])}' if first['own_help'] else ''
    table = Table(title=f'{title}{own}')
    table.add_column('policy\nclips', overflow='fold')
    ratios = ('realised', 'unhelped', 'memory')
    for name in ('MACs', 'time\n10-90 %', 'stock ms\nours ms', *ratios):
        table.add_column(name, justify='right', no_wrap=True)
    for row in rows:
        clip = 'x'.join(map(str, row['shape'][1:]))
        keys = ('realised', 'time_ratio_unhelped', 'peak_memory_ratio')
        found = ('-' if row[key] is None else f'{row[key]:.3f}' for key in keys)
        of = f', of {row["clips"]}' if row['policy'].startswith(GATED) else ''
        table.add_row(
            f'{row["policy"]}{of}\n{row["batch_size"]} of {clip}',
            f'{row["macs_ratio"]:.3f}',
            f'{row["time_ratio"]:.3f}\n{row["time_ratio_p10"]:.2f}-{row["time_ratio_p90"]:.2f}',
            f'{row["static_ms"]:.1f}\n{row["dynamic_ms"]:.1f}',
            *found,
        )
    return table


def render_profile(row: Mapping[str, Any]) -> Table:
    """What stock and ours spend their time in."""
    static, dynamic = row['static_operations_ms'], row['dynamic_operations_ms']
    bound = row['realised_bound']
    told = '' if bound is None else f'; realised at most {bound:.3f}, by convolutions alone'
    table = Table(title=f'{row["policy"]}, {row["batch_size"]} clips: ms of operations{told}')
    for name in ('operation', 'stock', 'ours'):
        table.add_column(name, justify='left' if name == 'operation' else 'right')
    for name in dict.fromkeys([*list(dynamic)[:PROFILED], *list(static)[:PROFILED]]):
        table.add_row(name, f'{static.get(name, 0):.2f}', f'{dynamic.get(name, 0):.2f}')
    return table


def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = shlex.join(['tools/benchmark.py', *arguments])
    run_tool(build_parser(), functools.partial(benchmark_network, command), arguments)


def benchmark_network(command: str, args: argparse.Namespace) -> None:
    """Take the rows, and print them."""
    model, cases, videos = prepare(args)
    # What the profiler would say about itself goes into the progress bar otherwise.
    os.environ.setdefault('KINETO_LOG_LEVEL', '6')
    report = take_rows(args, model, cases, videos, command)
    console = Console()
    console.print(render(report['rows']))
    for row in report['rows'] if args.profile else ():
        console.print(render_profile(row))
    console.print(
        'Ratios are ours to the stock network; "unhelped" is against the stock network as '
        'MMAction2 runs it. "realised" is the share of the saved multiply-adds that shows as saved '
        'time.',
        highlight=False,
    )
    if not videos and any(case.policy.name.startswith(GATED) for case in cases):
        console.print(
            'Gates saw noise: compute and time are not those of videos; --data takes clips of the '
            'test set.',
            highlight=False,
        )


if __name__ == '__main__':
    main()
