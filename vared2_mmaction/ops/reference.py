# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The method written down naively, map by map, for tests to compare with."""

from typing import Any

import torch
from torch import Tensor

from .gate import Modulation
from .options import Options


def reference(layer: Any, clips: Tensor, weights: Modulation, options: Options) -> Tensor:
    """What a dynamic layer makes of clips, whatever it computes.

    Args:
        layer: A dynamic convolution.
        clips: Input, (N, C_in, T, H, W).
        weights: Weights of the options.
        options: Which options they are of.
    """
    whole = layer.convolve(clips)  # all channels of all frames
    share = [v / v.sum(1, keepdim=True) for v in weights]
    mixed = torch.zeros_like(whole)
    for n, option in enumerate(options.channel):
        k, y = layer.channel_options.kept[option], whole.clone()
        for c in range(k, layer.out_channels):
            y[:, c] = _rebuild(layer.channel_options, option, c - k, whole[:, c % k])
        mixed += share[0][:, n, None, None, None, None] * y
    out = torch.zeros_like(whole)
    for n, option in enumerate(options.temporal):
        y = mixed.clone()
        for t in range(whole.shape[2]):
            if offset := t % 2**option:
                for c in range(layer.out_channels):
                    source, number = mixed[:, c, t - offset], (offset - 1) * layer.out_channels + c
                    y[:, c, t] = _rebuild(layer.temporal_options, option, number, source)
        out += share[1][:, n, None, None, None, None] * y
    return out


def _rebuild(options: Any, option: int, number: int, source: Tensor) -> Tensor:
    """One map by a cheap operation: (N, T, H, W) or (N, H, W) of its source."""
    operation = options.operation(option)
    return operation.weight[number] * source + operation.bias[number]
