# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Put weights into a network, and say what became of them."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from ..errors import FileError
from .reading import CheckpointError

OWN_PARTS = ('gate', 'channel_options', 'temporal_options')
_COUNTER = 'num_batches_tracked'  # old files lack it, averaged ones have fractions
NO_WEIGHTS = (_COUNTER, '_options.used')
"""Ends of keys that older checkpoints lack: without the latter, all options are in use."""
_whole: ContextVar[bool] = ContextVar('whole', default=False)


class OtherNetworkError(FileError):
    """Weights are those of another network."""


@dataclass(frozen=True)
class Report:
    """What became of the weights of a file."""

    loaded: int
    """Tensors of the network that were in the file."""
    wanted: int
    """Tensors of the network, without the counters of batch normalisation and options in use."""
    gates: int
    """Tensors of gates and cheap operations that the file lacks."""
    missing: tuple[str, ...]
    """Other tensors that it lacks."""
    mismatched: tuple[str, ...]
    """Tensors of another shape, which were not loaded: key, expected and found shape."""
    unused: tuple[str, ...]
    """What else is in the file."""

    def __str__(self) -> str:
        parts = [f'{self.loaded} of {self.wanted} tensors of the network loaded']
        if self.gates:
            parts.append(
                f'{self.gates} of gates and cheap operations are not in the file and stay as '
                'initialised'
            )
        for what in ('missing', 'mismatched', 'unused'):
            if named := getattr(self, what):
                parts.append(f'{what}: {", ".join(named)}')
        return '; '.join(parts)


@contextmanager
def whole_networks() -> Iterator[None]:
    """Within, weights are refused that leave anything but gates as initialised.

    A network whose head is not in the file can be trained; what it answers is of no use.
    """
    token = _whole.set(True)
    try:
        yield
    finally:
        _whole.reset(token)


def report_loading(original: Callable[..., None]) -> Callable[..., Report]:
    """MMEngine's ``load_state_dict``, with checks before and one line of log after."""

    def load_state_dict(
        module: nn.Module, state_dict: Mapping[str, Any], strict: bool = False, logger: Any = None
    ) -> Report:
        while is_model_wrapper(module) or isinstance(module, BaseTTAModel):
            module = module.module  # type: ignore[assignment]
        own = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}
        for key, value in own.items():
            if key in state_dict:
                check_kind(key, value, state_dict[key])
        missing: list[str] = []
        unused: list[str] = []

        def take_over(_: nn.Module, incompatible: Any) -> None:
            for kept, keys in (
                (missing, incompatible.missing_keys),
                (unused, incompatible.unexpected_keys),
            ):
                kept.extend(keys)
                if not strict:
                    keys.clear()  # MMEngine would print them all

        handle = module.register_load_state_dict_post_hook(take_over)
        try:
            original(module, state_dict, strict, logger if strict else 'silent')
        finally:
            handle.remove()
        report = _report(own, state_dict, missing, unused)
        if _whole.get():
            _refuse_parts(own, report)
        quiet = not (report.gates or report.missing or report.mismatched or report.unused)
        level = logging.INFO if quiet else logging.WARNING
        print_log(str(report), 'current' if logger is None else logger, level)
        return report

    load_state_dict.__wrapped__ = original  # type: ignore[attr-defined]
    return load_state_dict


def check_kind(key: str, expected: Tensor, found: Any) -> None:
    """Refuse a value of a state dict that is no tensor, or whose numbers are of another kind than
    those of the network: quantised, Boolean or complex weights would be cast without a word."""
    if not isinstance(found, Tensor):
        raise CheckpointError(f'expected a tensor as {key}, found a {type(found).__name__}')
    kinds = _kind(expected), _kind(found)
    if kinds[0] != kinds[1] and not key.endswith(_COUNTER):
        raise CheckpointError(
            f'expected {kinds[0]} numbers as {key} ({expected.dtype}), found {found.dtype}'
        )


def _kind(tensor: Tensor) -> str:
    if tensor.is_quantized:
        return 'quantised'
    if tensor.dtype == torch.bool:
        return 'Boolean'
    if tensor.is_complex():
        return 'complex'
    return 'floating-point' if tensor.is_floating_point() else 'integer'


def _report(
    own: Mapping[str, Tensor],
    given: Mapping[str, Any],
    missing: Iterable[str],
    unused: Iterable[str],
) -> Report:
    lacking = [key for key in missing if not key.endswith(NO_WEIGHTS)]
    others = tuple(key for key in lacking if not is_own_parameter(key))
    wanted = [key for key in own if not key.endswith(NO_WEIGHTS)]
    mismatched = tuple(
        f'{key} of shape {tuple(own[key].shape)}, found {tuple(given[key].shape)}'
        for key in wanted
        if key in given and not _fits(own[key], given[key])
    )
    return Report(
        loaded=len(wanted) - len(set(wanted).intersection(lacking)) - len(mismatched),
        wanted=len(wanted),
        gates=len(lacking) - len(others),
        missing=others,
        mismatched=mismatched,
        unused=tuple(unused),
    )


def _fits(expected: Tensor, found: Tensor) -> bool:
    """By shape; PyTorch takes a vector for a number."""
    return found.shape == expected.shape or (expected.dim() == 0 and found.dim() == 1)


def _refuse_parts(own: Mapping[str, Tensor], report: Report) -> None:
    if report.mismatched:
        raise OtherNetworkError(f'of another network: expected {report.mismatched[0]}')
    for key in report.missing:
        shape = tuple(own[key].shape) if key in own else 'some'
        raise OtherNetworkError(f'of another network: expected {key} of shape {shape}, found none')


def is_own_parameter(key: str) -> bool:
    """Whether a state-dict key belongs to a gate or a cheap operation."""
    return any(part in OWN_PARTS for part in key.split('.'))


@contextmanager
def naming_file(path: str) -> Iterator[None]:
    """Name the file in what is raised while its weights are put into a network."""
    try:
        yield
    except (CheckpointError, OtherNetworkError) as error:
        if str(path) in str(error):
            raise
        raise type(error)(f'{path}: {error}') from error
