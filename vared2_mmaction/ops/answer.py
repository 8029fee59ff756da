# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What a gate answers, for the network and for the host that decides what to execute."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .blend import shares

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
        shares: Does what the method does, where that is known better than by the tensors.
        constant: Whether the tensors are known to have no gradient.
    """

    def __init__(
        self,
        weights: Sequence[Weights],
        modulation: Callable[[], Modulation],
        shares: Callable[[float | None], Modulation] | None = None,
        constant: bool = False,
    ) -> None:
        self.weights = weights
        self.constant = constant
        self._make = modulation
        self._share = shares

    @functools.cached_property
    def modulation(self) -> Modulation:
        """The weights as tensors, with their gradient."""
        return self._make()

    def shares(self, saturation: float | None) -> Modulation:
        """What options are blended with, (N, options) each, zeros behind them included.

        Args:
            saturation: See :func:`~vared2_mmaction.ops.blend.shares`; None where the weights are
                the shares.
        """
        if self._share is not None:
            return self._share(saturation)
        if saturation is None:
            return self.modulation
        return Modulation(*(shares(v, saturation) for v in self.modulation))


def fetch(modulation: Modulation) -> Answer:
    """Bring a modulation to the host, which waits for the device once."""
    channels = modulation.channel.shape[1]
    rows = torch.cat(modulation, 1).tolist()
    return Answer([(row[:channels], row[channels:]) for row in rows], lambda: modulation)
