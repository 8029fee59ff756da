# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The network that a runner trains."""

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn


def network_of(runner: Runner) -> nn.Module:
    """The model without a wrapper of distributed training."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
