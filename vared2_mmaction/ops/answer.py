# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What a gate answers, for the network and for the host that decides what to execute."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Weights = Sequence[Sequence[float]]
"""Weights of the channel options of one clip, and those of its temporal options."""


class Modulation(NamedTuple):
    """Weights V of the options of one layer, dearest option first.

    An option whose weight is exactly zero is off; at least one is on for every clip.
    """

    channel: Tensor
    """(N, channel options), in [0, 1]."""
    temporal: Tensor
    """(N, temporal options), in [0, 1]."""


class Answer:
    """A modulation whose weights have been brought to the host.

    Args:
        weights: The weights of each clip.
        modulation: Makes the same as tensors. Skipping without blending never asks for them.
        constant: Whether the tensors are known to have no gradient.
    """

    def __init__(
        self,
        weights: Sequence[Weights],
        modulation: Callable[[], Modulation],
        constant: bool = False,
    ) -> None:
        self.weights = weights
        self.constant = constant
        self._make = modulation

    @functools.cached_property
    def modulation(self) -> Modulation:
        """The weights as tensors, with their gradient."""
        return self._make()

    def shares(self, normalised: bool) -> Modulation:
        """What options are blended with, (N, options) each.

        Args:
            normalised: Whether weights are divided by their sum; otherwise they are the shares.
        """
        if not normalised:
            return self.modulation
        return Modulation(*(v / v.sum(-1, keepdim=True) for v in self.modulation))


def active_options(v: Sequence[float]) -> list[int]:
    """Options of one dimension that are on for a clip, dearest first."""
    return [option for option, weight in enumerate(v) if weight > 0]


def fetch(modulation: Modulation) -> Answer:
    """Bring a modulation to the host, which waits for the device once."""
    channels = modulation.channel.shape[1]
    rows = torch.cat(modulation, 1).tolist()
    return Answer([(row[:channels], row[channels:]) for row in rows], lambda: modulation)
