# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Force a policy on a network, whatever its gates would answer."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
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
    policy = torch.tensor([channel, temporal]).expand(1, len(_layers_to_force(model)), 2)
    with force_policies(model, policy):
        yield


@contextmanager
def force_policies(model: nn.Module, policy: Tensor) -> Iterator[None]:
    """Let every gate of a model answer one option a clip with weight 1, such as those of a dump.

    Args:
        model: A dynamic backbone or anything that contains one.
        policy: (N, layers, 2), p_c and p_t of every dynamic layer for each clip of the batches to
            come, or (1, layers, 2) for all clips. Layers as in :func:`dynamic_layers`; clamped to
            the options that a layer has.

    Raises:
        ValueError: If the policy is of another shape, or a batch of another size.
    """
    layers = _layers_to_force(model)
    if policy.dim() != 3 or policy.shape[1:] != (len(layers), 2) or policy.min() < 0:
        raise ValueError(
            f'policy: expected options, 0 or more, of shape (clips, {len(layers)}, 2) for '
            f'{type(model).__name__}, got shape {tuple(policy.shape)}'
        )
    with ExitStack() as stack:
        for options, layer in zip(policy.unbind(1), layers.values(), strict=True):
            stack.enter_context(layer.gate.register_forward_hook(_answer(options)))
        yield


@contextmanager
def masking(model: nn.Module) -> Iterator[None]:
    """Let a model compute every convolution as a whole and discard what its policy leaves out.

    The output is the same. Published dynamic networks are executed so; it is there to compare with.
    """
    layers = _layers_to_force(model).values()
    for layer in layers:
        layer.skip = False
    try:
        yield
    finally:
        for layer in layers:
            layer.skip = True


def _layers_to_force(model: nn.Module) -> dict[str, DynamicConv2d | DynamicConv3d]:
    if not (layers := dynamic_layers(model)):
        raise ValueError(f'{type(model).__name__} has no dynamic layer to force a policy on')
    return layers


def _answer(options: Tensor) -> Callable:
    """A hook that makes a gate answer with options, (N, 2) or (1, 2) for all clips."""

    @functools.cache  # the same for every batch
    def forced(dimension: int, number: int, like: tuple[torch.dtype, torch.device]) -> Tensor:
        dtype, device = like
        column = options[:, dimension].long().clamp(max=number - 1)
        return F.one_hot(column, number).to(device, dtype)

    def answer(gate: nn.Module, args: Any, output: Modulation) -> Modulation:
        if len(options) not in (1, len(output.channel)):
            raise ValueError(
                f'policy: expected a batch of {len(options)} clips, got {len(output.channel)}'
            )
        return Modulation(
            *(
                forced(dimension, v.shape[1], (v.dtype, v.device)).expand_as(v)
                for dimension, v in enumerate(output)
            )
        )

    return answer
