# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What gates say of clips, and what every decision would cost them."""

from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..models.policy import dynamic_layers
from ..ops import Modulation, Options, SoftModulationGate
from ..ops.cost import LayerCost
from ..ops.options import available
from .passes import backbone_to_calibrate, evaluating, run_batches

ON, OFF = -np.inf, np.inf
"""Thresholds of options that are on, or off, for certain."""
Thresholds = dict[str, np.ndarray]
"""For every layer what the pre-activation of each option of its gate has to exceed for the option
to be on: (channel options + temporal options,)."""


@dataclass(frozen=True)
class ObservedLayer:
    """One layer and N clips, in multiply-adds."""

    u: np.ndarray
    """Pre-activations of the gate, (N, channel options + temporal options): an option is on where
    its is above 0."""
    macs: np.ndarray
    """Cost of every pair of options, (N, channel options, temporal options)."""
    options: Options
    """Options in use that clips of this length have."""
    errors: tuple[np.ndarray, np.ndarray]
    """Squared error of each channel and each temporal option, over the variance of the output."""

    def columns(self, dimension: int) -> list[int]:
        """Columns of a dimension's options in use, dearest first."""
        first = dimension * self.macs.shape[1]
        return [first + option for option in self.options[dimension]]

    def decided(self, thresholds: np.ndarray) -> list[np.ndarray]:
        """The dearest option of each dimension that is on, (N,) each."""
        decided = []
        for dimension, options in enumerate(self.options):
            columns = self.columns(dimension)
            on = self.u[:, columns] > thresholds[columns]
            on[:, -1] = True  # the cheapest takes over where all are off
            decided.append(np.asarray(options)[on.argmax(1)])
        return decided

    def cost(self, thresholds: np.ndarray) -> np.ndarray:
        """Multiply-adds that clips are charged, (N,)."""
        channel, temporal = self.decided(thresholds)
        return self.macs[np.arange(len(self.macs)), channel, temporal]


@dataclass(frozen=True)
class Observation:
    """Dynamic layers in the order in which they run, and N clips."""

    layers: dict[str, ObservedLayer]
    fixed: np.ndarray
    """Multiply-adds of what is not dynamic, (N,)."""
    static: np.ndarray
    """Multiply-adds of the static network, (N,)."""

    def ratio(self, thresholds: Thresholds) -> np.ndarray:
        """Compute ratio of every clip if features stay as they are, (N,)."""
        costs = (layer.cost(thresholds[name]) for name, layer in self.layers.items())
        return (self.fixed + sum(costs)) / self.static

    def zeros(self) -> Thresholds:
        """Thresholds of the gates as they are."""
        return {name: np.zeros(layer.u.shape[1]) for name, layer in self.layers.items()}


def observe(model: nn.Module, loader: Iterable[Any], errors: bool = False) -> Observation:
    """Run clips through a model and note what its gates say; all modules are put back.

    Args:
        model: See :func:`~vared2_mmaction.budget.passes.run_batches`.
        loader: Batches.
        errors: Whether to measure how well options rebuild what they leave out, which takes a few
            times as long.

    Raises:
        ValueError: If a gate is of another kind, there is no clip, or clips differ in length.
    """
    backbone, layers = observable(model)
    said: dict[str, list[Tensor]] = defaultdict(list)
    costs: dict[str, list[tuple[int, LayerCost]]] = {}  # in the order in which layers run
    sums: dict[str, Any] = defaultdict(float)
    rows: list[Tensor] = []

    def look(name: str, layer: Any, args: Any, output: Tensor) -> None:
        clips = layer.to_clips(args[0])
        frames = layer.options_of(clips.shape[2])[1]
        every = Options(tuple(range(layer.num_options[0])), tuple(range(len(frames))))
        area = output.shape[-2] * output.shape[-1]
        cost = LayerCost(layer.constants, every, frames, area)
        costs.setdefault(name, []).append((len(clips), cost))
        if cost.frames != costs[name][0][1].frames:
            raise ValueError(
                f'{name}: expected clips of one length to calibrate on, got some of which it '
                f'computes {costs[name][0][1].frames[0]} frames, and {cost.frames[0]} of others'
            )
        if errors:
            sums[name] += _errors(layer, clips, every)

    def listen(name: str, fc2: nn.Module, args: Any, u: Tensor) -> None:
        said[name].append(u.double().cpu())

    def keep_costs(_: nn.Module, args: Any, output: Any) -> None:
        every_frame = backbone.clip_length or 1  # a 2-D backbone has a row for each frame
        rows.append(output.decisions[::every_frame, :, :2].cpu())

    with ExitStack() as stack, evaluating(model):
        for name, layer in layers.items():
            stack.enter_context(layer.register_forward_hook(partial(look, name)))
            stack.enter_context(layer.gate.fc2.register_forward_hook(partial(listen, name)))
        stack.enter_context(backbone.register_forward_hook(keep_costs))
        run_batches(model, loader)
    whole = torch.cat(rows).numpy()
    return Observation(
        {
            name: _layer(name, layers[name], costs[name], said[name], sums[name], len(whole))
            for name in costs
        },
        fixed=whole[:, 0, 0],
        static=whole[..., 1].sum(1),
    )


def observable(model: nn.Module) -> tuple[Any, dict[str, Any]]:
    """Backbone and dynamic layers of a model whose gates can be observed, or a ValueError."""
    backbone = backbone_to_calibrate(model)
    layers = dynamic_layers(backbone)
    for name, layer in layers.items():
        if type(layer.gate) is not SoftModulationGate:
            kind = type(layer.gate).__name__
            raise ValueError(f'{name}: expected a SoftModulationGate to calibrate, got {kind}')
    return backbone, layers


def _errors(layer: Any, clips: Tensor, every: Options) -> np.ndarray:
    """Sum of squared errors of channel and of temporal options, and last that of the mean."""

    def output(channel: int, temporal: int) -> Tensor:
        one = clips.new_ones(len(clips), 1)
        return layer.modulate(clips, Modulation(one, one), Options((channel,), (temporal,)))

    whole = output(0, 0)
    outputs = [output(i, 0) for i in every.channel] + [output(0, j) for j in every.temporal]
    outputs.append(whole.mean((0, 2, 3, 4), keepdim=True))
    return np.array([(y - whole).square().sum().item() for y in outputs])


def _layer(
    name: str,
    layer: Any,
    costs: list[tuple[int, LayerCost]],
    said: list[Tensor],
    errors: Any,
    clips: int,
) -> ObservedLayer:
    if (inputs := sum(n for n, _ in costs)) != clips:
        raise ValueError(f'{name}: expected one input a clip to calibrate, got {inputs} of {clips}')
    cost = costs[0][1]
    unit = np.concatenate([np.full(n, cost.whole()[0], dtype=float) for n, cost in costs])
    channels, frames = cost.computed()
    number, temporal = len(channels), len(frames)
    channel_options, temporal_options = layer.in_use
    errors = errors / max(errors[-1], 1e-12) if isinstance(errors, np.ndarray) else np.zeros(9)
    return ObservedLayer(
        # A layer with one option of each dimension in use does not ask its gate.
        u=torch.cat(said).numpy() if said else np.zeros((clips, sum(layer.num_options))),
        macs=unit[:, None, None] * np.outer(channels, frames),
        options=Options(channel_options, available(temporal_options, temporal)),
        errors=(errors[:number], errors[number : number + temporal]),
    )
