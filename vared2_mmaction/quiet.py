# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Messages of other packages that tell a user nothing, left out when this package is imported.

Each is told by its text and by who says it, so that the same message stays where a user causes it.
"""

import inspect
import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

from .replacing import replaces

_OPEN_MMLAB = ('mmengine', 'mmcv', 'mmaction', 'mmdet')
_IMPORT_WARNINGS = (
    # mmcv-lite has no operators; nothing here asks for that one.
    ('Fail to import ``MultiScaleDeformableAttention``', r'mmcv\.cnn\.bricks\.transformer'),
    # MMEngine imports it, and loads it again by importlib.
    ('pkg_resources is deprecated as an API', r'mmengine\.utils\.package_utils|importlib'),
    # MMEngine's wrapper hands it on to PyTorch.
    ('`broadcast_buffers` is deprecated', r'mmengine\.model\.wrappers\.distributed'),
    # Strides of kernels of one element mean nothing.
    (
        r'Grad strides do not match bucket view strides[\s\S]*'
        r'grad\.sizes\(\) = \[\d+, \d+(, 1)+\]',
        r'torch\.autograd\.graph',
    ),
)
_OPTION = re.compile(r'paramwise_options -- (?P<parameter>[^:]+): ?(?P<key>\w+) ?= ?(?P<value>.*)')
_KINDS_SAID = 6


def apply() -> None:
    """Leave the messages out; must run before ``mmaction`` is imported."""
    for message, module in _IMPORT_WARNINGS:
        warnings.filterwarnings('ignore', message, module=f'({module})$')
    _leave_out_deprecations_of_own_calls()
    _leave_out_prefix_of_dumps()
    _sum_up_parameter_options()


def _leave_out_deprecations_of_own_calls() -> None:
    """Every training says that MMEngine's FileClient, which MMEngine itself uses, is deprecated."""
    from mmengine.fileio import file_client

    own = file_client.__name__, __name__, replaces.__module__

    @replaces(file_client, 'print_log')
    def print_log(original: Callable, *args: Any, **kwargs: Any) -> None:
        frame = inspect.currentframe()
        while frame and frame.f_globals['__name__'] in own:
            frame = frame.f_back
        if frame is None or frame.f_globals['__name__'].partition('.')[0] not in _OPEN_MMLAB:
            original(*args, **kwargs)


def _leave_out_prefix_of_dumps() -> None:
    """``test.py --dump`` says that a metric without any value has no prefix for its values."""
    from mmengine.evaluator import metric

    @replaces(metric, 'print_log')
    def print_log(original: Callable, msg: Any, *args: Any, **kwargs: Any) -> None:
        if msg != 'The prefix is not set in metric class DumpResults.':
            original(msg, *args, **kwargs)


def _sum_up_parameter_options() -> None:
    """Optimizer constructors write a line for each option of each parameter, hundreds in all.

    One line says what options there are; the others are shown with ``log_level='DEBUG'``.
    """
    from mmengine.logging import MMLogger
    from mmengine.optim import DefaultOptimWrapperConstructor as Constructor

    @replaces(Constructor, '__call__')
    def construct(original: Callable, self: Any, *args: Any, **kwargs: Any) -> Any:
        logger = MMLogger.get_current_instance()
        options = _ParameterOptions()
        logger.addFilter(options)
        try:
            return original(self, *args, **kwargs)
        finally:
            logger.removeFilter(options)
            if options.of_parameters:
                logger.info(options.summary())


class _ParameterOptions(logging.Filter):
    """Collects the options of parameters from a log, where they then are for debugging only."""

    def __init__(self) -> None:
        super().__init__()
        self.of_parameters: dict[str, list[str]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        found = _OPTION.fullmatch(record.getMessage())
        if found is not None:
            options = self.of_parameters.setdefault(found['parameter'], [])
            options.append(f'{found["key"]}={found["value"]}')
            record.levelno, record.levelname = logging.DEBUG, 'DEBUG'
        return True

    def summary(self) -> str:
        """What options there are, and of how many parameters."""
        kinds = Counter(', '.join(options) for options in self.of_parameters.values())
        said = [f'{options} for {number}' for options, number in kinds.most_common(_KINDS_SAID)]
        if left := len(kinds) - len(said):
            said.append(f'{left} other combinations')
        total = f'{len(self.of_parameters)} parameters with options of their own'
        return f"paramwise_cfg: {total}: {'; '.join(said)} (log_level='DEBUG' names them)"
