# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Force a policy on a network, whatever its gates would answer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .layers import is_dynamic


def dynamic_layers(model: nn.Module) -> dict[str, Any]:
    """The dynamic convolutions of a model by name, in the order of registration."""
    return {name: module for name, module in model.named_modules() if is_dynamic(module)}


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


class force_policies:
    """Let every gate of a model answer one option a clip with weight 1, such as those of a dump.

    A context, which may be entered any number of times.

    Args:
        model: A dynamic backbone or anything that contains one.
        policy: (N, layers, 2), p_c and p_t of every dynamic layer for each clip of the batches to
            come, or (1, layers, 2) for all clips. Layers as in :func:`dynamic_layers`; clamped to
            the options that a layer has.

    Raises:
        ValueError: If the policy is of another shape, or a batch of another size.
    """

    def __init__(self, model: nn.Module, policy: Tensor) -> None:
        layers = _layers_to_force(model)
        if policy.dim() != 3 or policy.shape[1:] != (len(layers), 2) or policy.min() < 0:
            raise ValueError(
                f'policy: expected options, 0 or more, of shape (clips, {len(layers)}, 2) for '
                f'{type(model).__name__}, got shape {tuple(policy.shape)}'
            )
        for (name, layer), options in zip(layers.items(), policy.unbind(1), strict=True):
            _check_in_use(name, layer, options)
        self._layers = tuple(layers.values())
        self._forced = list(policy.long().unbind(1))
        self._before: list[list[Tensor | None]] = []

    def __enter__(self) -> None:
        self._before.append([layer.forced for layer in self._layers])
        devices = (next(layer.parameters()).device for layer in self._layers)
        pairs = zip(self._forced, devices, strict=True)
        self._force([options.to(device) for options, device in pairs])

    def __exit__(self, *_: object) -> None:
        self._force(self._before.pop())

    def _force(self, all_forced: Sequence[Tensor | None]) -> None:
        for layer, forced in zip(self._layers, all_forced, strict=True):
            layer.forced = forced


def _check_in_use(name: str, layer: Any, options: Tensor) -> None:
    """Refuse options, (clips, 2), that a layer has and that are out of use."""
    for dimension, number, in_use, column in zip(
        ('channel', 'temporal'), layer.num_options, layer.in_use, options.unbind(1), strict=True
    ):
        for option in column.clamp(max=number - 1).unique().tolist():
            if option not in in_use:
                raise ValueError(
                    f'{name}: {dimension} option {option} is out of use; in use are {in_use}'
                )


def _layers_to_force(model: nn.Module) -> dict[str, Any]:
    if not (layers := dynamic_layers(model)):
        raise ValueError(f'{type(model).__name__} has no dynamic layer to force a policy on')
    return layers
