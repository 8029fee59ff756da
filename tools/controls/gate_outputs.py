# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Record the gate outputs of a network, and put others in their place.

:class:`~vared2_mmaction.models.force_policies` forces options; here the weights of options are
replaced, because networks learn to mix options.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine import dist
from torch import Tensor, nn
from typing_extensions import Self

from vared2_mmaction.models import dynamic_layers
from vared2_mmaction.ops import Modulation

OWN, OTHER, MEAN = 'own', 'other', 'mean'
"""Whose gate outputs a clip gets."""
SEED = 0
"""Of the permutation of clips."""

GateOutputs = Mapping[str, Modulation]
"""Weights of each layer whose gate is asked; a row a view, those of a clip together."""


class Recording:
    """Context that keeps the gate outputs of a model."""

    def __init__(self, model: nn.Module) -> None:
        self._gates = {name: layer.gate for name, layer in dynamic_layers(model).items()}
        self._kept: dict[str, list[Modulation]] = {}

    def __enter__(self) -> Self:
        self._handles = [
            gate.register_forward_hook(functools.partial(self._hear, name))
            for name, gate in self._gates.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hear(self, name: str, gate: nn.Module, args: Any, output: Modulation) -> Modulation | None:
        self._kept.setdefault(name, []).append(Modulation(*(v.detach().cpu() for v in output)))
        return None

    def outputs(self) -> GateOutputs:
        """All that was kept.

        Raises:
            ValueError: If clips of different lengths left a layer different numbers of options.
        """
        for name, kept in self._kept.items():
            if len({(v.channel.shape[1], v.temporal.shape[1]) for v in kept}) > 1:
                raise ValueError(f'--controls: clips leave {name} different numbers of options')
        return {
            name: Modulation(*(torch.cat(v) for v in zip(*kept, strict=True)))
            for name, kept in self._kept.items()
        }


class Replay(Recording):
    """Context in which gates return what is given, row by row, whatever their input is.

    It may be entered any number of times, and goes on with the next row.
    """

    def __init__(self, model: nn.Module, outputs: GateOutputs) -> None:
        super().__init__(model)
        self._outputs = outputs
        self._next = dict.fromkeys(outputs, 0)

    def _hear(self, name: str, gate: nn.Module, args: Any, output: Modulation) -> Modulation:
        begin = self._next[name]
        self._next[name] = end = begin + len(output.channel)
        pairs = zip(self._outputs[name], output, strict=True)
        return Modulation(*(rows[begin:end].to(given) for rows, given in pairs))


def replaced(outputs: GateOutputs, clips: int, single: bool = False) -> dict[str, GateOutputs]:
    """The gate outputs of a network by control.

    Args:
        outputs: Its own.
        clips: Number of clips that they are for; each has as many rows.
        single: Whether a clip has its dearest option alone, with weight one; the mean output is
            then the option that most clips have. Otherwise that is the mean of the weights, without
            options that are on for less than half of the clips.
    """
    order = np.random.default_rng(SEED).permutation(clips)
    others = np.empty_like(order)
    others[order] = np.roll(order, 1)  # one cycle through all: no clip keeps its own

    def permuted(v: Tensor) -> Tensor:
        return v.unflatten(0, (clips, -1))[others].flatten(0, 1)

    own = {
        name: Modulation(*(map(_dearest, pair) if single else pair))
        for name, pair in outputs.items()
    }
    return {
        OWN: own,
        OTHER: {name: Modulation(*map(permuted, pair)) for name, pair in own.items()},
        MEAN: {name: Modulation(*(_mean(v, single) for v in pair)) for name, pair in own.items()},
    }


def _dearest(v: Tensor) -> Tensor:
    return F.one_hot((v > 0).int().argmax(1), v.shape[1]).to(v.dtype)


def _mean(v: Tensor, single: bool) -> Tensor:
    """The mean of weights (rows, options), for each row."""
    sums = torch.cat((torch.stack((v.sum(0), (v > 0).sum(0))).double(), torch.ones(2, 1)), 1)
    sums[:, -1] *= len(v)
    dist.all_reduce(sums)
    (weights, on), rows = sums[:, :-1], sums[0, -1]
    stays = F.one_hot(on.argmax(), len(on)).bool()
    mean = stays.double() if single else weights / rows * (stays | (2 * on >= rows))
    return mean.to(v.dtype).expand_as(v)
