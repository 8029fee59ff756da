# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Leave every layer one option of each dimension, those that its gate wants most at a budget."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from mmengine import dist
from torch import nn

from .observe import OFF, ON, Observation, ObservedLayer, Thresholds, observe

CLOSE = 0.01
"""How near to a compute ratio is near enough."""


def common_options(
    model: nn.Module, batches: Iterable[Any], ratio: float
) -> tuple[dict[str, tuple[int, int]], float]:
    """Options of every layer, the same for all clips, that are nearest to a compute ratio.

    A layer gets the dearest option for which the pre-activation of its gate, the median over clips,
    is above a threshold. The threshold is the same for all layers, and at 0 each has what it
    decides for the typical clip. Where layers are so large that no threshold comes near, one option
    more is closed or opened.

    Args:
        model: See :func:`~vared2_mmaction.budget.passes.run_batches`.
        batches: Clips of this process; pre-activations are averaged over all processes.
        ratio: Share of the static network's multiply-adds that is wanted.

    Returns:
        p_c and p_t of each dynamic layer by name, and the compute ratio that they have.

    Raises:
        ValueError: If the network cannot be observed, see
            :func:`~vared2_mmaction.budget.observe.observe`.
    """
    seen = observe(model, batches)
    layers = {name: _typical(layer) for name, layer in seen.layers.items()}
    typical = Observation(layers, seen.fixed[:1], seen.static[:1])

    def misses(thresholds: Thresholds) -> float:
        return abs(float(typical.ratio(thresholds)[0]) - ratio)

    levels = {
        (name, column): float(layer.u[0, column])
        for name, layer in layers.items()
        for dimension in (0, 1)
        for column in layer.columns(dimension)[:-1]
    }
    common = {
        level: {name: np.full_like(layer.u[0], level) for name, layer in layers.items()}
        for level in (ON, *sorted(set(levels.values())))
    }
    best = min(common, key=lambda level: misses(common[level]))
    thresholds = common[best]
    if misses(thresholds) > CLOSE:  # then the option nearest to the threshold that mends it
        for (name, column), level in sorted(levels.items(), key=lambda item: abs(item[1] - best)):
            one = thresholds[name].copy()
            one[column] = OFF if level > best else ON
            if misses(other := {**thresholds, name: one}) <= CLOSE:
                thresholds = other
                break
    options = {}
    for name, layer in layers.items():
        channel, temporal = layer.decided(thresholds[name])
        options[name] = int(channel[0]), int(temporal[0])
    return options, float(typical.ratio(thresholds)[0])


def _typical(layer: ObservedLayer) -> ObservedLayer:
    """A layer as it decides for one typical clip of those of all processes."""
    u = torch.from_numpy(np.median(layer.u, axis=0))
    dist.all_reduce(u, 'mean')
    return replace(layer, u=u.numpy()[None], macs=layer.macs[:1])
