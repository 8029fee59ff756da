# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Optimise the networks that tools run, and say so; what cannot be optimised runs as it is."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..deploy import executed, optimize
from ..executors import BACKENDS, ExecutedConv
from ..models import dynamic_layers, force_policies
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


def _executes_the_dearest(module: nn.Module) -> bool:
    if not isinstance(module, ExecutedConv) or not module.is_dynamic:
        return False
    backend = BACKENDS.get(module.executed_by)
    return backend is not None and not backend.by_clip


@torch.no_grad()
def dearest_ratio(model: nn.Module, batch: Any) -> float:
    """Compute ratio of the dearest options in use, the same for every clip.

    Args:
        model: A dynamic recognizer.
        batch: What its ``test_step`` takes.
    """
    in_use = [layer.in_use for layer in dynamic_layers(model).values()]
    dearest = torch.tensor([[channel[0], temporal[0]] for channel, temporal in in_use])
    was_training = model.training
    model.eval()  # does not return the module in stock recognizers
    try:
        with force_policies(model, dearest[None]):
            samples = model.test_step(batch)  # type: ignore[operator]
    finally:
        model.train(was_training)
    return sum(sample.compute_ratio for sample in samples) / len(samples)


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
        self._asks = False
        if runner.cfg.get('compile'):
            said = 'not optimised: compiled, as the config says (compile)'
        elif is_wrapper(network):
            said = f'not optimised: {type(network).__name__} wraps it'
        else:
            copy, said = try_to_optimize(network)
            setattr(owner, name, copy)
            self._asks = any(map(_executes_the_dearest, copy.modules()))
        runner.logger.info(said)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Say once what is executed, where that is not what is decided for each clip."""
        if self._asks and isinstance(data_batch['inputs'][0], Tensor):  # no augmented copies
            self._asks = False
            share = dearest_ratio(self._restore[-1], data_batch)
            runner.logger.info(
                f'executed: {share:.1%} of the static multiply-adds for every clip, by the dearest '
                'options in use; compute/ratio is what was decided'
            )

    def after_test_epoch(self, runner: Runner, metrics: Any = None) -> None:
        """Put the network back."""
        owner, name, network = self._restore
        setattr(owner, name, network)
