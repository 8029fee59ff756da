# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Messages of other packages that tell a user nothing, left out when this package is imported.

Each is told by its text and by who says it, so that the same message stays where a user causes it.
"""

import inspect
import logging
import warnings
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


def apply() -> None:
    """Leave the messages out; must run before ``mmaction`` is imported."""
    for message, module in _IMPORT_WARNINGS:
        warnings.filterwarnings('ignore', message, module=f'({module})$')
    _leave_out_deprecations_of_own_calls()
    _leave_out_prefix_of_dumps()
    _leave_out_options_of_parameters()


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
    from mmengine.evaluator import DumpResults

    DumpResults.default_prefix = ''


def _leave_out_options_of_parameters() -> None:
    """Optimizer constructors write a line for each option of each parameter, hundreds in all; they
    are shown with ``log_level='DEBUG'``."""
    from mmengine.optim.optimizer import default_constructor

    @replaces(default_constructor, 'print_log')
    def print_log(original: Callable, msg: Any, *args: Any, **kwargs: Any) -> None:
        if str(msg).startswith('paramwise_options --'):
            kwargs['level'] = logging.DEBUG
        original(msg, *args, **kwargs)
