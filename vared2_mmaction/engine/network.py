# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The network that a runner trains, and how far it has come."""

from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ..errors import AT_LEAST_0, COUNT

ITERATIONS = COUNT._replace(words='a number of iterations, 1 or more,')
EPOCH = AT_LEAST_0._replace(words='a number of epochs, 0 or more')


def network_of(runner: Runner) -> nn.Module:
    """The model without a wrapper of distributed training."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def epochs_passed(runner: Runner) -> float:
    """Share of the training so far in passes through the data, in loops by epochs and in loops by
    iterations alike."""
    return runner.iter / len(runner.train_dataloader)


def check_begin(hook: Any, runner: Runner) -> None:
    """Refuse a hook that would never do anything, because training ends before ``hook.begin``."""
    epochs = runner.max_iters / len(runner.train_dataloader)
    if hook.begin >= epochs:
        raise ValueError(
            f'{type(hook).__name__}: begin={hook.begin!r}: expected an epoch, counted from 0, of '
            f'the {epochs:g} that are trained'
        )
