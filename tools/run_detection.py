# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Action detection on the moving-boxes set: a static network, the same trained for longer, and
VA-RED2 from the static weights, with the same options for every clip and with gates that adapt;
some seeds each.

Every step leaves a file and is skipped where that is there; an interrupted training goes on from
its last checkpoint.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mmengine.config import Config
from rich.console import Console

import vared2_mmaction  # noqa: F401  (mends the installed releases)
from commands import steps
from commands.cli import run_tool
from studies import detection

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / 'configs' / 'detection'
STATIC, DYNAMIC = 'static_resnet3d_moving-boxes', 'vared2_resnet3d_moving-boxes'
VARED2, ADAPTIVE = 'VA-RED2', 'adaptive'
NETWORKS = {'static': STATIC, 'longer': STATIC, VARED2: DYNAMIC, ADAPTIVE: DYNAMIC}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--work-dir',
        type=lambda path: Path(path).absolute(),  # tools are run in the folder of the project
        default=ROOT / 'work_dirs' / 'detection',
        help='where everything is written (default: work_dirs/detection)',
    )
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    return parser


def run_all(args: argparse.Namespace) -> None:
    os.chdir(ROOT)
    # Threads that wait actively take the cores from the processes that decode videos.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    steps.run('tools/make_moving_boxes.py', 'data/moving_boxes')
    scores: dict[str, list[detection.Score]] = {name: [] for name in args.networks}
    console = Console()
    for seed in args.seeds:
        for name in args.networks:
            console.rule(f'{name}, seed {seed}')
            scores[name].append(train_and_test(name, seed, args.work_dir))
    cfg = Config.fromfile(CONFIGS / f'{STATIC}.py')
    at_random = detection.chance(cfg.test_evaluator.ann_file)
    console.print('\n'.join(detection.markdown(scores, at_random)), soft_wrap=True)
    plain = {name: [asdict(score) for score in runs] for name, runs in scores.items()}
    report = {'seeds': args.seeds, 'chance': at_random, 'scores': plain}
    (args.work_dir / 'results.json').write_text(json.dumps(report, indent=1) + '\n')


def train_and_test(name: str, seed: int, work_dir: Path) -> detection.Score:
    """Train and test a network, or what is missing of that."""
    config = CONFIGS / f'{NETWORKS[name]}.py'
    first, second = (steps.epochs_of(CONFIGS / f'{kind}.py') for kind in (STATIC, DYNAMIC))
    epochs = {STATIC: first, DYNAMIC: second}[NETWORKS[name]]
    changes = []
    if NETWORKS[name] == DYNAMIC:
        changes.append(f'load_from={work_dir / f"static_seed{seed}" / f"epoch_{first}.pth"}')
    if name == 'longer':
        epochs = first + second
        changes += [f'train_cfg.max_epochs={epochs}', f'param_scheduler.1.end={epochs}']
    if name == ADAPTIVE:
        changes.append('custom_hooks.1.type=FreezeGatesHook')
    checkpoint = work_dir / f'{name}_seed{seed}' / f'epoch_{epochs}.pth'
    steps.train(config, checkpoint, seed, changes)
    return detection.score(Config.fromfile(config), str(steps.test(config, checkpoint)))


def main(argv: Sequence[str] | None = None) -> None:
    run_tool(build_parser(), run_all, argv)


if __name__ == '__main__':
    main()
