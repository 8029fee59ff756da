# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Equal compute: which random policy, and which static network, takes what another network took."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from mmaction.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from vared2_mmaction.models import force_policy, static_cost
from vared2_mmaction.ops.options import MAX_OPTIONS

from .random_gate import option_probabilities


class LayerCosts(NamedTuple):
    """Multiply-adds of a dynamic backbone for one clip, gates and cheap operations left out."""

    fixed: float
    """Convolutions that are not dynamic."""
    layers: list[np.ndarray]
    """Of every dynamic layer, (channel options, temporal options)."""

    @property
    def static(self) -> float:
        """All layers in full."""
        return self.fixed + sum(float(layer[0, 0]) for layer in self.layers)


def init_scope(cfg: Config) -> None:
    """Let registries find MMAction2's parts, as a runner of the config does."""
    init_default_scope(cfg.get('default_scope', 'mmaction'))


def backbone_of(cfg: Config) -> nn.Module:
    """The backbone of a config with random weights, in evaluation mode."""
    init_scope(cfg)
    backbone = MODELS.build(cfg.model.backbone)
    backbone.eval()  # does not return the module in stock backbones
    return backbone


@torch.no_grad()
def layer_costs(backbone: nn.Module, clip_shape: Sequence[int]) -> LayerCosts:
    """Ask a dynamic backbone what every option of every layer executes.

    Args:
        backbone: A dynamic backbone.
        clip_shape: (C, T, H, W).
    """
    clip, fixed = torch.zeros(1, *clip_shape), 0.0
    found: list[dict[tuple[int, ...], float]] = []
    for channel in range(MAX_OPTIONS):
        for temporal in range(MAX_OPTIONS):
            with force_policy(backbone, channel, temporal):
                table = backbone(clip).decisions[0]
            fixed = table[0, 0].item()
            found = found or [{} for _ in table[1:]]
            for layer, row in zip(found, table[1:], strict=True):
                layer[tuple(row[3:5].int().tolist())] = row[0].item()
    layers = []
    for layer in found:
        costs = np.empty(np.max(list(layer), axis=0) + 1)
        for options, executed in layer.items():
            costs[options] = executed
        layers.append(costs)
    return LayerCosts(fixed, layers)


def expected_ratio(costs: LayerCosts, thrift: float) -> float:
    """Expected share of the static multiply-adds under a random policy.

    Args:
        costs: Of the backbone.
        thrift: See :func:`~studies.random_gate.option_probabilities`.
    """
    total = costs.fixed
    for layer in costs.layers:
        channel, temporal = (option_probabilities(n, thrift) for n in layer.shape)
        total += float(channel @ layer @ temporal)
    return total / costs.static


def thrift_for(costs: LayerCosts, ratio: float) -> float:
    """The random policy whose expected compute is a share of the static one, to six digits.

    Raises:
        ValueError: If no policy of the network takes so much or so little.
    """
    least, most = expected_ratio(costs, 1.0), expected_ratio(costs, 0.0)
    if not least <= ratio <= most:
        raise ValueError(
            f'ratio={ratio:.4f}: expected a share of the static multiply-adds that the options of '
            f'the network can take, {least:.4f} to {most:.4f}'
        )
    low, high = 0.0, 1.0
    while high - low > 1e-8:
        middle = (low + high) / 2
        low, high = (middle, high) if expected_ratio(costs, middle) > ratio else (low, middle)
    return round((low + high) / 2, 6)


def options_for(
    costs: LayerCosts, usage: Sequence[Sequence[Sequence[float]]], ratio: float
) -> list[list[int]]:
    """Options of every layer, the same for all clips, that suffice for a share of the clips.

    The share is the same for all layers: that with which the compute is nearest to a target. With
    one half, each layer has the median of the options that clips chose.

    Args:
        costs: Of the backbone.
        usage: For every layer and dimension the share of clips that chose an option or a dearer
            one, for each option.
        ratio: Target, share of the static multiply-adds.

    Returns:
        p_c and p_t of each layer.
    """

    def options(share: float) -> list[list[int]]:
        return [[sum(s < share for s in chose) for chose in layer] for layer in usage]

    def miss(chosen: list[list[int]]) -> float:
        layers = zip(costs.layers, chosen, strict=True)
        total = costs.fixed + sum(float(layer[c, t]) for layer, (c, t) in layers)
        return abs(total / costs.static - ratio)

    shares = sorted({share for layer in usage for chose in layer for share in chose if share})
    return min(map(options, shares), key=miss)


def width_for(cost: Callable[[int], float], target: float, widest: int) -> int:
    """The width whose cost is nearest to a target.

    Args:
        cost: Multiply-adds of a width, which rise with it. Widths far below the target are not
            asked for: a network may not exist in them.
        target: Multiply-adds.
        widest: Largest width that is tried.

    Raises:
        ValueError: If the target is below the narrowest network, or above the widest.
    """
    if (above := cost(widest)) < target:
        raise ValueError(f'target={target:.0f}: expected at most {above:.0f}, of width {widest}')
    for width in range(widest - 1, 0, -1):
        if (below := cost(width)) <= target:
            return width if target - below < above - target else width + 1
        above = below
    raise ValueError(f'target={target:.0f}: expected at least {above:.0f}, of width 1')


def cost_of(cfg: Config, clip_shape: Sequence[int]) -> float:
    """Multiply-adds of a config's static backbone for one clip."""
    return float(static_cost(backbone_of(cfg), clip_shape))
