# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The network that a runner trains, its moving averages and budgets, and how far it has come."""

from typing import Any

from mmengine import dist
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from torch import nn

from ..errors import AT_LEAST_0, COUNT
from ..models.policy import dynamic_layers
from ..models.wrapped import unwrapped
from ..ops import ComputationBudgetLoss

ITERATIONS = COUNT._replace(words='a number of iterations, 1 or more,')
EPOCH = AT_LEAST_0._replace(words='a number of epochs, 0 or more')


def network_of(runner: Runner) -> nn.Module:
    """The model without a wrapper of distributed training."""
    return unwrapped(runner.model)


def networks_of(runner: Runner) -> list[nn.Module]:
    """The model, and its moving averages, which have the options in use of the model then."""
    model = network_of(runner)
    averages = [hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook)]
    for average in averages:
        copies = dynamic_layers(average).values()
        for layer, copy in zip(dynamic_layers(model).values(), copies, strict=True):
            copy.channel_options.use(layer.channel_options.in_use)
            copy.temporal_options.use(layer.temporal_options.in_use)
    return [model, *averages]


def budgets_of(model: nn.Module) -> list[tuple[ComputationBudgetLoss, float, float]]:
    """Budget losses of a model, with weight and budget as they are now."""
    losses = (module for module in model.modules() if isinstance(module, ComputationBudgetLoss))
    return [(loss, loss.loss_weight, loss.budget) for loss in losses]


def budget_of(model: nn.Module) -> float | None:
    """The budget that a model is to keep, as it is now: that of its first loss that counts and has
    one above 0."""
    return next((b for _, weight, b in budgets_of(model) if b > 0 < weight), None)


def batches_of_epoch(runner: Runner) -> int:
    """Batches that a process gets in a pass of all processes through the data."""
    loader = runner.train_dataloader
    # Its length is that of the data, whatever the number of processes.
    shared = isinstance(getattr(loader, 'sampler', None), InfiniteSampler)
    return -(-len(loader) // dist.get_world_size()) if shared else len(loader)


def epochs_passed(runner: Runner) -> float:
    """Share of the training so far in passes through the data, in loops by epochs and in loops by
    iterations alike."""
    return runner.iter / batches_of_epoch(runner)


def check_begin(hook: Any, runner: Runner) -> None:
    """Refuse a hook that would never do anything, because training ends before ``hook.begin``."""
    epochs = runner.max_iters / batches_of_epoch(runner)
    if hook.begin >= epochs:
        raise ValueError(
            f'{type(hook).__name__}: begin={hook.begin!r}: expected an epoch, counted from 0, of '
            f'the {epochs:g} that are trained'
        )
