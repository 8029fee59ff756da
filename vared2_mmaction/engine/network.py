# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The network that a runner trains, and how far it has come."""

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn


def network_of(runner: Runner) -> nn.Module:
    """The model without a wrapper of distributed training."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def epochs_passed(runner: Runner) -> float:
    """Share of the training so far in passes through the data, in loops by epochs and in loops by
    iterations alike."""
    return runner.iter / len(runner.train_dataloader)
