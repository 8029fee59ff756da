# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Trains a model: MMAction2's flags, with vared2_mmaction registered.

Flags, their defaults and their choices are those of MMAction2 1.2.0, so that its documentation and
scripts written for it apply.
"""

import argparse
from collections.abc import Sequence

from mmengine.config import Config

import vared2_mmaction  # noqa: F401  (registers the models and mends the OpenMMLab releases)
from commands import cli
from commands.check_data import check_run
from vared2_mmaction.apis.config_file import merge_options, read_config_file
from vared2_mmaction.checkpoints.resuming import newest_checkpoint

AMP_WRAPPERS = ('OptimWrapper', 'AmpOptimWrapper')


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description='Train an action recognizer')
    cli.add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from this checkpoint; without a value, from the latest in the work folder',
    )
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    parser.add_argument('--no-validate', action='store_true', help='do not validate meanwhile')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the total batch size (auto_scale_lr.base_batch_size)',
    )
    parser.add_argument('--seed', type=int, help='random seed')
    parser.add_argument(
        '--diff-rank-seed', action='store_true', help='give every process a seed of its own'
    )
    parser.add_argument(
        '--deterministic', action='store_true', help='use deterministic algorithms only'
    )
    return parser


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Applies what :func:`build_parser` parsed to ``cfg``, in place; ``--cfg-options`` come last.

    Other than in MMAction2, seed flags also apply when the config has a ``randomness`` of its own.

    Raises:
        ValueError: If the config cannot do what a flag asks for.
    """
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.launcher = args.launcher
    cfg.work_dir = cli.resolve_work_dir(cfg, args)
    if args.amp:
        enable_amp(cfg)
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = cfg.get('load_from') if args.resume == 'auto' else args.resume
    if args.auto_scale_lr:
        if cfg.get('auto_scale_lr') is None:
            raise ValueError(
                '--auto-scale-lr needs `auto_scale_lr=dict(base_batch_size=...)` in the config: '
                f'{args.config} has none'
            )
        cfg.auto_scale_lr.enable = True
    set_randomness(cfg, args)
    if args.cfg_options is not None:
        merge_options(cfg, args.cfg_options)
    if args.resume == 'auto' and cfg.load_from is not None:
        last = newest_checkpoint(cfg.work_dir)
        cfg.resume, cfg.load_from = last is not None, last or cfg.load_from
    return cfg


def enable_amp(cfg: Config) -> None:
    wrapper = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if wrapper not in AMP_WRAPPERS:
        raise ValueError(
            f'--amp works with optim_wrapper.type {" or ".join(AMP_WRAPPERS)}, not {wrapper!r}'
        )
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def set_randomness(cfg: Config, args: argparse.Namespace) -> None:
    asked = {'seed': args.seed, 'diff_rank_seed': args.diff_rank_seed}
    asked['deterministic'] = args.deterministic
    if cfg.get('randomness') is None:
        cfg.randomness = asked
        return
    given = {key: value for key, value in asked.items() if value is not None and value is not False}
    cfg.randomness.update(given)


def train(args: argparse.Namespace) -> None:
    cfg = read_config_file(args.config)
    merge_args(cfg, args)
    check_run(cfg, 'train', 'val')
    cli.build_runner(cfg).train()
    cli.leave_process_group()


def main(argv: Sequence[str] | None = None) -> None:
    cli.run_tool(build_parser(), train, argv)


if __name__ == '__main__':
    main()
