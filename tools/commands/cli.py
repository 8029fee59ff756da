# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What all tools do with their command line."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import CalledProcessError

import torch.distributed
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from vared2_mmaction.apis.config_file import first_line
from vared2_mmaction.errors import FileError

_LAST_TENSORS = 0.5
"""Seconds that threads of a process group get to let go of them; they need far less."""
_MISTAKES = (ValueError, OSError, ImportError, FloatingPointError, FileError, CalledProcessError)
_MISTAKES_OF_CONFIGS = (KeyError, TypeError, AssertionError, NotImplementedError)


def run_tool(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None = None,
) -> None:
    """Run a tool; what a user can mend is said in one line, without a traceback.

    These are the exceptions by which arguments, configs and files are refused, such as
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
        raised = re.findall(rf'^(?:[\w.]+\.)?{said.split()[1]}: (.+)', said, re.MULTILINE)
        return raised[-1] if raised else None
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


def check_out(option: str, path: str, *suffixes: str) -> None:
    """Whether a file can be written there, before anything is computed.

    Raises:
        ValueError: If its name ends in none of the suffixes.
        OSError: If there is no such folder, it is one, or it cannot be written.
    """
    if suffixes and not path.lower().endswith(suffixes):
        raise ValueError(f'{option} {path!r}: expected a name that ends in {", ".join(suffixes)}')
    if not os.path.isdir(os.path.dirname(path) or '.'):
        raise FileNotFoundError(f'{option} {path!r}: there is no such folder')
    if os.path.isdir(path):
        raise IsADirectoryError(f'{option} {path!r}: is a folder')
    check_writable(option, path)


def check_writable(option: str, path: str) -> None:
    """Whether a file, or files in a folder that there is, can be written.

    Raises:
        OSError: If not.
    """
    try:
        if os.path.exists(path) and not (os.path.isdir(path) or os.path.isfile(path)):
            if not os.access(path, os.W_OK):  # a pipe would wait for a reader, and then end it
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        folder = path if os.path.isdir(path) else os.path.dirname(os.path.realpath(path))
        with tempfile.TemporaryFile(dir=folder):  # files take their places when they are whole
            pass
    except OSError as error:
        raise type(error)(f'{option} {path!r}: cannot be written: {error.strerror}') from error


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
