# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Which checkpoint a training goes on from, and what of it is believed.

A process can be killed at any moment: the note ``last_checkpoint`` is empty or names what is not
there, and a file is cut off.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log

from .reading import CheckpointError, Progress, read_progress

NOTE = 'last_checkpoint'


class _Whole(NamedTuple):
    path: Path
    progress: Progress


def newest_checkpoint(path: str | Path, logger: str = 'current') -> str | None:
    """The newest whole checkpoint of a folder, if any; which, and what is passed over, is logged.

    It is the one that the note ``last_checkpoint`` names, unless a later file has come further: a
    training was killed before it could change the note. Where the note is of no use, it is the file
    that was written last. Copies of the best checkpoint do not count. ``logger`` is 'current' or
    'silent', as MMEngine names it.
    """
    note = Path(path) / NOTE
    name = note.read_text(errors='replace').strip() if note.is_file() else ''
    if '://' in name or os.path.isdir(name):
        return name  # in a store of objects, or a folder of DeepSpeed: MMEngine's matter
    noted = _read(_find(note.parent, name), logger) if name else None
    found = next(_later(note.parent, noted, logger), noted)
    if found is None:
        print_log(f'{path} holds no whole checkpoint: there is nothing to resume', logger)
        return None
    if found is not noted:
        problem = f'names {name!r}' if name else 'is empty or missing'
        print_log(f'{note} {problem}; looked for a later whole checkpoint', logger)
    at = f'epoch {found.progress.epoch}, iteration {found.progress.iter}'
    print_log(f'{found.path} is the newest whole checkpoint: {at}', logger)
    return str(found.path)


def is_whole(path: str | Path) -> bool:
    """Whether there is a file, and all of a checkpoint is in it."""
    return _read(Path(path), 'silent') is not None


def _find(folder: Path, name: str) -> Path:
    """The file that a note names, also where its folder was moved since."""
    inside = folder / Path(name).name
    return inside if inside.is_file() else Path(name)


def _later(folder: Path, noted: _Whole | None, logger: str) -> Iterator[_Whole]:
    """Whole checkpoints that were written after another and have come further, last first."""
    files = [path for path in folder.glob('*.pth') if not path.name.startswith('best_')]
    written = [(path.stat().st_mtime_ns, path) for path in files if path.is_file()]
    since = 0 if noted is None else noted.path.stat().st_mtime_ns
    for time, path in sorted(written, reverse=True):
        if time < since:
            return
        whole = None if noted is not None and path == noted.path else _read(path, logger)
        if whole is not None and (noted is None or whole.progress > noted.progress):
            yield whole


def _read(path: Path, logger: str) -> _Whole | None:
    try:
        return _Whole(path, read_progress(str(path)))
    except (CheckpointError, OSError) as error:
        print_log(f'passed over: {error}', logger, logging.WARNING)
    return None


@contextmanager
def naming_state(path: str) -> Iterator[None]:
    """Name the file whose optimizer, schedulers or history are not those of this training, in place
    of what setting them to its state raised."""
    try:
        yield
    except CheckpointError:
        raise
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        problem = f'{type(error).__name__}: {str(error).partition(chr(10))[0]}'
        raise CheckpointError(
            f'{path}: expected the state of a training with the same optimizer, schedulers and '
            f'data; it cannot be resumed ({problem})'
        ) from error


def distrust(runner: Any) -> None:
    """Forget files that a runner, which has resumed, would replace, but those of its own training.

    MMEngine removes ``best_ckpt``, a file or a whole folder, when a better one is saved.
    """
    folders = {os.path.abspath(runner.work_dir)}
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.out_dir is not None:
            name = os.path.basename(runner.work_dir.rstrip(os.sep))
            folders.add(os.path.abspath(os.path.join(hook.out_dir, name)))
    info = runner.message_hub.runtime_info
    for key in [key for key in info if str(key).startswith('best_ckpt')]:
        folder, name = os.path.split(os.path.abspath(str(info[key])))
        if folder not in folders or not name.startswith('best_'):
            print_log(f'{key} {info[key]!r} is not a file of this training: left alone', 'current')
            info.pop(key)
    kept = info.get('keep_ckpt_ids', [])
    if not isinstance(kept, list) or not all(type(step) is int for step in kept):
        info.pop('keep_ckpt_ids')
