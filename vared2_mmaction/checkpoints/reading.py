# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Checkpoint files, of which nothing is executed and whose mistakes are named in one line."""

import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

_RESUMED = ('meta', 'state_dict', 'message_hub')
_HISTORY = ('log_scalars', 'runtime_info', 'resumed_keys')
_GPU_IDS = re.compile(
    r'^gpu_ids *= *(?:range\((?:(\d{1,9}), *)?(\d{1,9})\)|\[([\d, ]*)\]) *$', re.MULTILINE
)
_REFUSED = re.compile(r'it asks for .* is refused.*')  # as arrays.py says it
_ASKED = re.compile(r'GLOBAL (\S+)')
_DETAIL = re.compile(r'WeightsUnpickler error: (.*)')


class CheckpointError(ValueError, pickle.UnpicklingError):
    """A file is no checkpoint, is cut off, or asks for what no checkpoint holds."""


class Progress(NamedTuple):
    """How far the training was that wrote a checkpoint."""

    iter: int
    epoch: int


def read_progress(path: str) -> Progress:
    """Read how far the training was that wrote a checkpoint; its tensors are mapped, not read.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it is no checkpoint of a training, or only a part of one.
    """
    with naming(path):
        mapped = zipfile.is_zipfile(path)
        checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=mapped)
    check_content(path, checkpoint)
    if all(isinstance(checkpoint.get(key), Mapping) for key in _RESUMED):
        meta, history = checkpoint['meta'], checkpoint['message_hub']
        numbers = [meta.get(key) for key in Progress._fields]
        whole = all(isinstance(history.get(key), Mapping) for key in _HISTORY)
        if whole and all(type(number) is int and number >= 0 for number in numbers):
            return Progress(*numbers)
    raise CheckpointError(
        f'{path}: expected a checkpoint that a training can go on from, with '
        f'{", ".join(_RESUMED)}, meta.epoch and meta.iter; found {_keys(checkpoint)}'
    )


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Name the file in what is raised while it is read, in one line: a CheckpointError in place of
    anything but :class:`OSError` and :class:`ImportError`."""
    try:
        yield
    except (OSError, ImportError, CheckpointError):
        raise
    except Exception as error:  # unpickling some other file may raise anything
        raise CheckpointError(f'{path}: {_reason(path, error)}') from error


def _reason(path: str, error: Exception) -> str:
    """What is wrong with a file, without PyTorch's advice to switch the protection off."""
    problem = str(error).strip().partition(chr(10))[0]
    if isinstance(error, pickle.UnpicklingError):  # PyTorch wraps a reason into its advice
        if refused := _REFUSED.search(str(error)):
            return refused[0]
        if asked := _ASKED.search(str(error)):
            return f'it asks for {asked[1]}, which no checkpoint holds; it is refused'
        detail = _DETAIL.search(str(error))
        problem = detail[1] if detail else 'it cannot be unpickled'
    elif 'weights_only' in problem:
        problem = 'PyTorch does not read such files as weights'
    expected = 'expected a checkpoint of torch.save'
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return f'{expected}, found an empty file'
    return f'{expected}; it is another file or cut off ({type(error).__name__}: {problem})'


def check_content(path: str, checkpoint: Any) -> None:
    """Refuse a file that holds no dict, or no tensors in its state dict; names file and key."""
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(
            f'{path}: expected a dict with a state_dict, found a {type(checkpoint).__name__}'
        )
    state = checkpoint.get('state_dict', {})
    if not isinstance(state, Mapping):
        raise CheckpointError(
            f'{path}: expected a dict as state_dict, found a {type(state).__name__}'
        )
    for key, value in state.items():
        if not isinstance(value, Tensor) and not str(key).endswith('_extra_state'):
            raise CheckpointError(
                f'{path}: expected a tensor as state_dict[{key!r}], found a {type(value).__name__}'
            )


def disarm(checkpoint: Mapping[str, Any]) -> None:
    """Leave nothing of the config that MMEngine would execute to resume, but the number of GPUs.

    That number is all that it looks for in ``meta.config``, the text of a config.
    """
    meta = checkpoint.get('meta')
    if isinstance(meta, dict) and 'config' in meta:
        number = _gpus(meta.pop('config'))
        if number is not None:
            meta['config'] = f'gpu_ids = range({number})'


def _gpus(config: Any) -> int | None:
    found = _GPU_IDS.search(config) if isinstance(config, str) else None
    if found is None:
        return None
    begin, end, listed = found.groups()
    if listed is not None:
        return len(re.findall(r'\d+', listed))
    return max(0, int(end) - int(begin or 0))


def _keys(checkpoint: Mapping[str, Any]) -> str:
    """Some keys of a file."""
    keys = [str(key)[:40] for key in checkpoint]
    more = f' and {len(keys) - 5} more' if len(keys) > 5 else ''
    return f'{", ".join(keys[:5])}{more}' if keys else 'an empty dict'
