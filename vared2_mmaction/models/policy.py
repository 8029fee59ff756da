# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Force a policy on a network, whatever its gates would answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import DynamicConv2d, DynamicConv3d, Modulation


def dynamic_layers(model: nn.Module) -> dict[str, DynamicConv2d | DynamicConv3d]:
    """The dynamic convolutions of a model by name, in the order of registration."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, DynamicConv2d | DynamicConv3d)
    }


@contextmanager
def force_policy(model: nn.Module, channel: int = 0, temporal: int = 0) -> Iterator[None]:
    """Let every gate of a model answer one option with weight 1.

    Args:
        model: A dynamic backbone or anything that contains one.
        channel: Channel option p_c; the layer computes 2^-p_c of its channels.
        temporal: Temporal option p_t; the layer computes 2^-p_t of its frames. Both are clamped
            to the options that the layer has. Options (0, 0) are the stock network.

    Raises:
        ValueError: If the model has no dynamic layer, or an option is negative.

    Examples:
        >>> with torch.no_grad(), force_policy(model, channel=1, temporal=1):
        ...     features, decisions = model.backbone(clips)
    """
    for name, option in (('channel', channel), ('temporal', temporal)):
        if option < 0:
            raise ValueError(f'{name}={option!r}: expected an option, 0 or more')
    layers = dynamic_layers(model)
    if not layers:
        raise ValueError(f'{type(model).__name__} has no dynamic layer to force a policy on')

    def answer(gate: nn.Module, args: Any, output: Modulation) -> Modulation:
        return Modulation(_one_hot(output.channel, channel), _one_hot(output.temporal, temporal))

    handles = [layer.gate.register_forward_hook(answer) for layer in layers.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _one_hot(v: Tensor, option: int) -> Tensor:
    forced = torch.zeros_like(v)
    forced[:, min(option, v.shape[1] - 1)] = 1
    return forced
