# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""A policy that takes the place of what gates answer."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from .answer import Answer, Modulation, Weights


class Forced:
    """Options for the clips of one layer, each with weight one.

    The gate is evaluated all the same, so that a forced network takes the time of a free one.

    Args:
        options: (N, 2), p_c and p_t of each clip, or (1, 2) for all clips; clamped to the options
            that the layer has.
    """

    def __init__(self, options: Tensor) -> None:
        self.options = options.long().cpu()
        self._pairs: list[list[int]] = self.options.tolist()
        self._on: dict[torch.device, Tensor] = {}
        self._weights = functools.cache(self._make_weights)  # the same for every batch

    def pairs(self, clips: int) -> list[list[int]]:
        """Options of each clip of a batch, or one pair for all.

        Raises:
            ValueError: If the options are for another number of clips.
        """
        if len(self._pairs) not in (1, clips):
            raise ValueError(f'policy: expected a batch of {len(self._pairs)} clips, got {clips}')
        return self._pairs

    def on(self, device: torch.device, clips: int) -> Tensor:
        """Options on a device, (N or 1, 2) of type int32, the same tensor for every batch.

        Raises:
            ValueError: See :meth:`pairs`.
        """
        self.pairs(clips)
        if device not in self._on:
            self._on[device] = self.options.to(device, torch.int32)
        return self._on[device]

    def replace(self, answer: Answer) -> Answer:
        """An answer of the same shape with the forced options.

        Raises:
            ValueError: See :meth:`pairs`.
        """
        clips = len(answer.weights)
        self.pairs(clips)
        numbers = tuple(map(len, answer.weights[0])) if clips else (1, 1)
        weights = self._weights(numbers)

        def modulation() -> Modulation:
            return Modulation(
                *(
                    self._one_hot(i, v.shape[1]).to(v).expand_as(v)
                    for i, v in enumerate(answer.modulation)
                )
            )

        every = weights * clips if len(weights) < clips else weights[:clips]
        return Answer(every, modulation, constant=True)

    def _one_hot(self, dimension: int, number: int) -> Tensor:
        return F.one_hot(self.options[:, dimension].clamp(max=number - 1), number)

    def _make_weights(self, numbers: tuple[int, int]) -> list[Weights]:
        rows = (self._one_hot(i, number).tolist() for i, number in enumerate(numbers))
        return list(zip(*rows, strict=True))
