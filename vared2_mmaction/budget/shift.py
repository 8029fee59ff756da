# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Keep the gates of a network that trains at its budget."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from mmengine import dist
from torch import nn

from ..models.policy import dynamic_layers
from .observe import Observation, observe
from .passes import backbone_to_calibrate

_ROUNDS, _HALVINGS = 4, 24


def shift_gates(model: nn.Module, batches: Iterable[Any], ratio: float) -> tuple[float, float]:
    """Add one number to the pre-activations of all options but the cheapest of each gate, in place,
    so that clips have a mean compute ratio when the network is evaluated.

    Options that clips want least close first, or open. Features then change under later gates,
    which are therefore asked again.

    Args:
        model: See :func:`~vared2_mmaction.budget.passes.run_batches`.
        batches: Clips of this process; the mean is that of all processes.
        ratio: The mean that is wanted.

    Returns:
        The mean before and after, in evaluation mode.
    """
    layers = dynamic_layers(backbone_to_calibrate(model))
    shifts, means = [0.0], []
    low, high = -math.inf, math.inf
    for _ in range(_ROUNDS):
        observed = observe(model, batches)
        means.append(_mean_ratio(observed, 0.0))
        if means[-1] < ratio:
            low = shifts[-1]
        else:
            high = shifts[-1]
        shift = shifts[-1] + _shift(observed, means[-1], ratio)
        if not low < shift < high and math.isfinite(high - low):
            shift = (low + high) / 2  # later gates saw other features then
        _add(layers, observed, shift - shifts[-1])
        shifts.append(shift)
    means.append(_mean_ratio(observe(model, batches), 0.0))
    best = min(range(len(means)), key=lambda i: abs(means[i] - ratio))
    _add(layers, observed, shifts[best] - shifts[-1])
    return means[0], means[best]


@torch.no_grad()
def _add(layers: Mapping[str, Any], observed: Observation, shift: float) -> None:
    for name, layer in observed.layers.items():
        columns = [c for dimension in (0, 1) for c in layer.columns(dimension)[:-1]]
        layers[name].gate.fc2.bias[columns] += shift


def _shift(observed: Observation, before: float, ratio: float) -> float:
    """The smallest shift that reaches a ratio, or comes nearest to it."""
    low, high = 0.0, (1.0 if before < ratio else -1.0)
    while (_mean_ratio(observed, high) - ratio) * high < 0:  # not there yet
        if abs(high) > 64:
            return 0.0  # gates that cannot bring it there stay
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if (_mean_ratio(observed, middle) - ratio) * high < 0:
            low = middle
        else:
            high = middle
    return min((low, high), key=lambda shift: abs(_mean_ratio(observed, shift) - ratio))


def _mean_ratio(observed: Observation, shift: float) -> float:
    """Mean of all processes' clips with shifted gates."""
    thresholds = {name: zeros - shift for name, zeros in observed.zeros().items()}
    ratios = observed.ratio(thresholds)
    total = torch.tensor([ratios.sum(), float(len(ratios))], dtype=torch.float64)
    dist.all_reduce(total)
    return float(total[0] / total[1])
