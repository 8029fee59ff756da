# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The demo: make a video set, train and test a static network and its VA-RED2 twin, compare.

Every step leaves a file and is skipped where that is there; an interrupted training goes on from
its last checkpoint.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

import vared2_mmaction
from commands import steps
from commands.cli import add_optimize_option, run_tool
from studies import compare
from vared2_mmaction.apis.optimizing import try_to_optimize
from vared2_mmaction.executors import BACKENDS

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / 'configs' / 'demo'
NETWORKS = {'static': 'static_r2plus1d', 'VA-RED2': 'vared2_r2plus1d'}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--work-dir',
        type=os.path.abspath,  # tools are run in the folder of the project
        default=str(ROOT / 'work_dirs' / 'demo'),
        help='where everything is written (default: work_dirs/demo)',
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0], help='of trainings')
    parser.add_argument('--timed-clips', type=int, default=100, help='clips that are timed')
    add_optimize_option(parser)
    return parser


def run_all(args: argparse.Namespace) -> None:
    if args.timed_clips < 1:
        raise ValueError(f'--timed-clips {args.timed_clips}: expected at least 1')
    os.chdir(ROOT)
    console = Console()
    console.rule('video set')
    steps.run('tools/make_moving_shapes.py', 'data/moving_shapes')
    flags = ['--no-optimize'] if args.no_optimize else []
    compared = []
    for seed in args.seeds:
        folder = Path(args.work_dir) / f'seed{seed}'
        for title, name in NETWORKS.items():
            console.rule(f'training: {title}, seed {seed}')
            train(name, folder, seed)
            console.rule(f'testing: {title}, seed {seed}')
            steps.test(CONFIGS / f'{name}.py', final_checkpoint(name, folder), *flags)
        console.rule(f'timing, seed {seed}')
        compared.append(show(console, folder, args.timed_clips, optimized=not args.no_optimize))
    if len(compared) > 1:
        console.print(compare.over_seeds(args.seeds, compared))


def final_checkpoint(name: str, folder: Path) -> Path:
    return folder / name / f'epoch_{steps.epochs_of(CONFIGS / f"{name}.py")}.pth'


def train(name: str, folder: Path, seed: int) -> None:
    changes: list[str] = []
    if name == NETWORKS['VA-RED2']:
        changes.append(f'load_from={final_checkpoint(NETWORKS["static"], folder)}')
        if BACKENDS['cpu'].is_available():  # faster; what is computed is the same
            changes.append('model.backbone.dynamic.compiled=True')
    steps.train(CONFIGS / f'{name}.py', final_checkpoint(name, folder), seed, changes)


def show(console: Console, folder: Path, timed_clips: int, optimized: bool) -> list[compare.Result]:
    models, cfg = [], None
    for name in NETWORKS.values():
        checkpoint = final_checkpoint(name, folder)
        model, cfg = compare.load_recognizer(str(CONFIGS / f'{name}.py'), str(checkpoint))
        models.append(model)
    batches = compare.decoded_videos(cfg, timed_clips)
    clip = batches[0]['inputs'][0].shape
    static_gmacs = vared2_mmaction.static_cost(models[0].get_submodule('backbone'), clip) / 1e9
    if optimized:
        for i, title in enumerate(NETWORKS):
            models[i], said = try_to_optimize(models[i])
            console.print(f'{title}: {said}')
    with Progress(console=console) as progress:
        task = progress.add_task('clips, both networks in turn', total=len(batches) + 5)
        seconds = compare.time_alternately(models, batches, progress=lambda: progress.advance(task))
    results = [
        compare.summarise(
            title, str(folder / name / 'test.pkl'), compare.median_ms(s), static_gmacs
        )
        for (title, name), s in zip(NETWORKS.items(), seconds, strict=True)
    ]
    views, _, frames, height, width = clip
    console.print(
        compare.table(
            results,
            f'R(2+1)D on the test set, {views} view of {frames} x {height} x {width}: accuracy, '
            'compute of a clip with gates and cheap operations, its share of the static '
            f'convolutions, time at batch size 1: median of {len(batches)} clips in turn, '
            f'{torch.get_num_threads()} threads, float32'
            f'{", both optimised" if optimized else ""}',
        )
    )
    return results


def main(argv: Sequence[str] | None = None) -> None:
    run_tool(build_parser(), run_all, argv)


if __name__ == '__main__':
    main()
