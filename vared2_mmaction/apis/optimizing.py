# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Optimise the networks that tools run, and say so; what cannot be optimised runs as it is."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel
from mmengine.runner import Runner
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..deploy import executed, optimize
from ..models.wrapped import is_wrapper
from .config_file import first_line

_RUN_A_COPY = (DataParallel, DistributedDataParallel, BaseTTAModel)
"""Modules whose tests call what is their ``module`` then."""


def optimize_and_log(model: nn.Module) -> nn.Module:
    """What :func:`try_to_optimize` gives; its line is logged."""
    network, said = try_to_optimize(model)
    print_log(said, 'current')
    return network


def try_to_optimize(model: nn.Module) -> tuple[nn.Module, str]:
    """An optimised copy of a network, see ``vared2_mmaction.optimize``, or the network where
    that fails, and a line that says which."""
    try:
        network = optimize(model)
    except Exception as error:  # what copying and swapping modules of others raises
        return model, f'not optimised: {first_line(error)}'
    return network, executed(network)


class OptimizeHook(Hook):
    """Lets a test run an optimised copy of the network, made of the weights that are tested.

    The copy takes the network's place inside of what wraps that: ``DistributedDataParallel``, which
    accepts no network without trainable parameters, and MMEngine's test-time augmentation.
    """

    priority = 'LOWEST'  # after those that load, average or wrap

    def before_test_epoch(self, runner: Runner) -> None:
        """Put the copy in the network's place."""
        owner, name = runner, 'model'
        while isinstance(getattr(owner, name), _RUN_A_COPY):
            owner, name = getattr(owner, name), 'module'
        network = getattr(owner, name)
        self._restore: Any = (owner, name, network)
        if runner.cfg.get('compile'):
            said = 'not optimised: compiled, as the config says (compile)'
        elif is_wrapper(network):
            said = f'not optimised: {type(network).__name__} wraps it'
        else:
            copy, said = try_to_optimize(network)
            setattr(owner, name, copy)
        runner.logger.info(said)

    def after_test_epoch(self, runner: Runner, metrics: Any = None) -> None:
        """Put the network back."""
        owner, name, network = self._restore
        setattr(owner, name, network)
