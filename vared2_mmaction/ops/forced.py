# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""A policy that takes the place of what gates answer."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from .gate import Modulation
from .joint import Answer


class Forced:
    """Options for the clips of one layer, each with weight one.

    The gate is evaluated all the same, so that a forced network takes the time of a free one.

    Args:
        options: (N, 2), p_c and p_t of each clip, or (1, 2) for all clips; clamped to the options
            that the layer has.
    """

    def __init__(self, options: Tensor) -> None:
        self.options = options.long().cpu()
        self._one_hot = functools.cache(self._make_one_hot)  # the same for every batch

    def replace(self, answer: Answer) -> Answer:
        """An answer of the same shape with the forced options.

        Raises:
            ValueError: If the batch has another number of clips.
        """
        clips = len(answer.weights)
        if len(self.options) not in (1, clips):
            raise ValueError(f'policy: expected a batch of {len(self.options)} clips, got {clips}')
        made = [self._one_hot(i, v.shape[1], v.dtype, v.device) for i, v in enumerate(answer[0])]
        channel, temporal = (one_hot.expand(clips, -1) for one_hot, _ in made)
        weights = list(zip(*(rows for _, rows in made), strict=True))
        if len(weights) < clips:
            weights = weights * clips
        return Answer(Modulation(channel, temporal), weights)

    def _make_one_hot(
        self, dimension: int, number: int, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, list[list[float]]]:
        column = self.options[:, dimension].clamp(max=number - 1)
        one_hot = F.one_hot(column, number)
        return one_hot.to(device, dtype), one_hot.double().tolist()
