# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What all tools do with their command line, and the command lines of ``tools/train.py`` and
``tools/test.py``.

The flags of these two, their defaults and their choices are those of MMAction2 1.2.0, so that its
documentation and scripts written for it apply.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import torch.distributed
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..checkpoints.resuming import newest_checkpoint
from ..errors import FileError
from .config_file import first_line, merge_options

_LAST_TENSORS = 0.5
"""Seconds that threads of a process group get to let go of them; they need far less."""
_MISTAKES = (ValueError, OSError, ImportError, FloatingPointError, FileError, CalledProcessError)
_MISTAKES_OF_CONFIGS = (KeyError, TypeError, AssertionError, NotImplementedError)
_AMP_WRAPPERS = ('OptimWrapper', 'AmpOptimWrapper')


def run_tool(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None = None,
) -> None:
    """Run a tool; what a user can mend is said in one line, without a traceback.

    That are the exceptions by which arguments, configs and files are refused, such as
    ``ValueError`` and ``OSError``, and ``KeyError``, ``TypeError`` and the like of what a config
    builds. Any other is a fault of the program and keeps its traceback, as all do with
    ``--traceback``.

    Args:
        parser: Of the tool's arguments; gets ``--traceback``.
        work: What the tool does with them; may return an exit status.
        argv: The arguments; None takes those of the process.

    Raises:
        SystemExit: With status 2 for a mistake, or with that of ``work`` where it is not 0.
    """
    parser.add_argument(
        '--traceback', action='store_true', help='where an error is from, not only what is wrong'
    )
    arguments = sys.argv[1:] if argv is None else argv
    try:
        status = work(parse_args(parser, arguments))
    except Exception as error:
        if '--traceback' in arguments or (told := _tell(error)) is None:
            raise
        parser.exit(2, f'{parser.prog}: error: {told}\n')
    if status:
        parser.exit(status)


def _tell(error: Exception) -> str | None:
    """What a mistake of the user's is; None if it is none, or says nothing."""
    of_config = isinstance(error, _MISTAKES_OF_CONFIGS) and any(
        frame.f_code.co_name == 'build_from_cfg'
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )
    said = str(error).strip()
    if not said or not (of_config or isinstance(error, _MISTAKES)):
        return None
    if said.startswith('Caught ') and '\nOriginal Traceback' in said:  # by a worker, for loading
        return said.splitlines()[-1].partition(': ')[2]
    return first_line(error)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that training and testing share."""
    parser.add_argument('config', help='path of the config file')
    parser.add_argument('--work-dir', help='folder for logs, results and checkpoints')
    add_config_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes of a distributed run',
    )
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='set by some launchers'
    )


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--cfg-options``, the same in every tool that reads a config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='settings that replace those of the config, for example model.cls_head.dropout=0.5; '
        'write lists as key="[a,b]", without spaces',
    )


def add_optimize_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--no-optimize``, the same in every tool that runs a network for inference."""
    parser.add_argument(
        '--no-optimize',
        action='store_true',
        help='run the network as it is, not its optimised copy with the same answers',
    )


def train_parser() -> argparse.ArgumentParser:
    """Returns the parser of ``tools/train.py``."""
    parser = argparse.ArgumentParser(description='Train an action recognizer')
    add_common_arguments(parser)
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


def test_parser() -> argparse.ArgumentParser:
    """Returns the parser of ``tools/test.py``."""
    parser = argparse.ArgumentParser(description='Test an action recognizer')
    add_common_arguments(parser)
    parser.add_argument('checkpoint', help='path or URL of the checkpoint')
    parser.add_argument('--dump', metavar='FILE.pkl', help='write all predictions to this pickle')
    parser.add_argument('--show-dir', help='folder to save frames with their predictions in')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument(
        '--interval', type=int, default=1, help='draw every INTERVAL-th sample (default: 1)'
    )
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds a window stays (default: 2)'
    )
    return parser


test_parser.__test__ = False  # type: ignore[attr-defined]  # pytest: not a test


def parse_args(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parses ``argv`` and exports ``LOCAL_RANK`` for launchers that pass it as an argument."""
    args = parser.parse_args(argv)
    if 'local_rank' in args:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def resolve_work_dir(cfg: Config, args: argparse.Namespace) -> str:
    """Returns the work folder: the command line's, else the config's, else one named after it."""
    if args.work_dir is not None:
        return args.work_dir
    if cfg.get('work_dir') is not None:
        return cfg.work_dir
    return os.path.join('./work_dirs', Path(args.config).stem)


def merge_train_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Applies what :func:`train_parser` parsed to ``cfg``, in place; ``--cfg-options`` come last.

    Other than in MMAction2, seed flags also apply when the config has a ``randomness`` of its own.

    Raises:
        ValueError: If the config cannot do what a flag asks for.
    """
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.launcher = args.launcher
    cfg.work_dir = resolve_work_dir(cfg, args)
    if args.amp:
        _enable_amp(cfg)
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
    _set_randomness(cfg, args)
    if args.cfg_options is not None:
        merge_options(cfg, args.cfg_options)
    if args.resume == 'auto' and cfg.load_from is not None:
        last = newest_checkpoint(cfg.work_dir)
        cfg.resume, cfg.load_from = last is not None, last or cfg.load_from
    return cfg


def merge_test_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Applies what :func:`test_parser` parsed to ``cfg``, in place.

    ``--cfg-options`` replace what the drawing flags set, and are themselves replaced by
    ``--work-dir``, ``--dump`` and the checkpoint. Other than in MMAction2, ``--show`` and
    ``--show-dir`` do not need a ``VisualizationHook`` in the config, and ``--cfg-options
    test_evaluator.x=y`` works together with ``--dump``.

    Raises:
        ValueError: If the config cannot do what a flag asks for.
    """
    if args.show or args.show_dir is not None:
        _enable_drawing(cfg, args)
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        merge_options(cfg, args.cfg_options)
    if args.dump is not None:
        _dump_predictions(cfg, args.dump)
    cfg.work_dir = resolve_work_dir(cfg, args)
    cfg.load_from = args.checkpoint
    return cfg


def build_runner(cfg: Config) -> Runner:
    """Builds the config's ``runner_type``, or MMEngine's ``Runner`` where it names none."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def leave_process_group() -> None:
    """End distributed communication, where there is any.

    PyTorch 2.13: threads of gloo let go of the last tensors after everybody was told that
    communication is over, and need the interpreter for it. One that finds it ending aborts the
    process, and one that finds its group being deleted waits for ever: they get time before.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        time.sleep(_LAST_TENSORS)
        torch.distributed.destroy_process_group()


def _enable_amp(cfg: Config) -> None:
    wrapper = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if wrapper not in _AMP_WRAPPERS:
        raise ValueError(
            f'--amp works with optim_wrapper.type {" or ".join(_AMP_WRAPPERS)}, not {wrapper!r}'
        )
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def _set_randomness(cfg: Config, args: argparse.Namespace) -> None:
    asked = {'seed': args.seed, 'diff_rank_seed': args.diff_rank_seed}
    asked['deterministic'] = args.deterministic
    if cfg.get('randomness') is None:
        cfg.randomness = asked
        return
    given = {key: value for key, value in asked.items() if value is not None and value is not False}
    cfg.randomness.update(given)


def _enable_drawing(cfg: Config, args: argparse.Namespace) -> None:
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    hook = hooks.get('visualization')
    if hook is None:
        hook = hooks['visualization'] = ConfigDict(type='VisualizationHook')
    hook.update(
        enable=True,
        show=args.show,
        wait_time=args.wait_time,
        out_dir=args.show_dir,
        interval=args.interval,
    )
    if cfg.get('visualizer') is None:
        cfg.visualizer = {
            'type': 'ActionVisualizer',
            'vis_backends': [{'type': 'LocalVisBackend'}],
        }


def _dump_predictions(cfg: Config, path: str) -> None:
    if not path.endswith(('.pkl', '.pickle')):
        raise ValueError(f'--dump writes a pickle: {path!r} must end in .pkl or .pickle')
    evaluator: Any = cfg.get('test_evaluator')
    if evaluator is None:
        raise ValueError('--dump needs a `test_evaluator` in the config')
    metrics = list(evaluator) if isinstance(evaluator, (list, tuple)) else [evaluator]
    cfg.test_evaluator = [*metrics, {'type': 'DumpResults', 'out_file_path': path}]
