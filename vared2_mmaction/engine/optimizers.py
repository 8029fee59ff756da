# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""MMAction2's constructor of TSM's optimizer, for dynamic networks too."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mmaction.engine.optimizers import TSMOptimWrapperConstructor
from torch import nn

from ..models.kinds import Convolution
from ..replacing import replaces
from ..watched import BATCH_NORMS

_NORMS = (*BATCH_NORMS, nn.GroupNorm, nn.LayerNorm)


@replaces(TSMOptimWrapperConstructor, 'add_params')
def _add_params(
    add_stock: Callable[..., None], self: Any, params: list[dict], model: nn.Module, **kwargs: Any
) -> None:
    """``add_params``, which also adds what convolutions hold beside weight and bias.

    MMAction2's takes the parameters of a convolution for its own two, and gives up at a module
    whose type it does not know. It gets to see the stock network, whose settings therefore do not
    change. Gates and cheap operations follow its rules: biases learn twice as fast, and neither
    they nor normalisation layers decay.
    """

    with _without_parts(model) as parts:
        add_stock(self, params, model, **kwargs)
    weights: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    norms: list[nn.Parameter] = []
    for module in (module for part in parts for module in part.modules()):
        for name, parameter in module.named_parameters(recurse=False):
            group = biases if name == 'bias' else weights
            (norms if isinstance(module, _NORMS) else group).append(parameter)
    for group, lr, decay in ((weights, 1, self.base_wd), (biases, 2, 0), (norms, 1, 0)):
        params.append({'params': group, 'lr': lr * self.base_lr, 'weight_decay': decay})


@contextmanager
def _without_parts(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Take the modules that convolutions hold out of a model, and put them back."""
    inside = [
        (module, dict(module._modules))
        for module in model.modules()
        if isinstance(module, Convolution)
    ]
    for conv, _ in inside:
        conv._modules.clear()
    try:
        yield [part for _, parts in inside for part in parts.values() if part is not None]
    finally:
        for conv, parts in inside:
            conv._modules.update(parts)
