# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The soft modulation gate: how much of a layer is computed for a clip."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Modulation(NamedTuple):
    """Weights V of the options of one layer, dearest option first.

    An option whose weight is exactly zero is off; at least one is on for every clip.
    """

    channel: Tensor
    """(N, channel options), in [0, 1)."""
    temporal: Tensor
    """(N, temporal options), in [0, 1)."""


def descriptor(x: Tensor, motion: bool) -> Tensor:
    """Describe a clip independently of its length and size.

    Args:
        x: Features, (N, C, T, H, W).
        motion: Whether to append the mean absolute difference of neighbouring frames, without
            which a still clip cannot be told from a moving one.

    Returns:
        Per-channel means, (N, C) or (N, 2 C).
    """
    mean = x.mean((2, 3, 4))
    if not motion:
        return mean
    if x.shape[2] < 2:
        return torch.cat((mean, torch.zeros_like(mean)), 1)
    return torch.cat((mean, (x[:, :, 1:] - x[:, :, :-1]).abs().mean((2, 3, 4))), 1)


class SoftModulationGate(nn.Module):
    """Soft modulation gate of one convolution.

    ``V = max(tanh(FC2(tanh(BN(FC1(descriptor(x))))) + beta), 0)`` for the options of both
    dimensions; beta is the bias of FC2. Training and inference evaluate the same function:
    nothing is sampled and no maximum is picked.

    After the idea of VA-RED2 (Pan et al., ICLR 2021); descriptor and floor are choices of this
    project.

    Args:
        in_channels: Channels C of the layer's input.
        channel_options: Number of channel options.
        temporal_options: Largest number of temporal options; a short clip has fewer.
        hidden_channels: Width of the hidden layer.
        motion: Whether the descriptor sees motion.
        dominance: Share of the dear option in the initial weights of a dimension, in (0, 1). All
            other options start open, each with half the weight of the one before it, so that every
            option gets a gradient.
        floor: Weight of the cheapest option where all options would be off, in (0, 1).
    """

    def __init__(
        self,
        in_channels: int,
        channel_options: int,
        temporal_options: int,
        hidden_channels: int = 32,
        motion: bool = True,
        dominance: float = 0.9,
        floor: float = 0.05,
    ) -> None:
        super().__init__()
        for name, value in (('dominance', dominance), ('floor', floor)):
            if not 0 < value < 1:
                raise ValueError(f'gate.{name}={value!r}: expected a number between 0 and 1')
        if hidden_channels < 1:
            raise ValueError(f'gate.hidden_channels={hidden_channels!r}: expected at least 1')
        self.motion = motion
        self.floor = floor
        self.channel_options = channel_options
        self.fc1 = nn.Linear(in_channels * (2 if motion else 1), hidden_channels)
        self.bn = nn.BatchNorm1d(hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, channel_options + temporal_options)
        nn.init.normal_(self.fc2.weight, std=0.002)  # small, so that no option starts closed
        with torch.no_grad():
            self.fc2.bias.copy_(
                torch.cat(
                    [_initial_beta(n, dominance) for n in (channel_options, temporal_options)]
                )
            )

    def macs(self) -> int:
        """Multiply-adds of the two fully connected layers for one clip."""
        return self.fc1.weight.numel() + self.fc2.weight.numel()

    def forward(self, x: Tensor, temporal_options: int) -> Modulation:
        """Weigh the options for every clip.

        Args:
            x: Input of the layer, (N, C, T, H, W).
            temporal_options: Number of temporal options that the clip's length allows.
        """
        with torch.autocast(x.device.type, enabled=False):
            # Features are not trained to please the gate, and the backward pass is spared.
            described = descriptor(x.detach(), self.motion).to(self.fc1.weight.dtype)
            hidden = torch.tanh(self._normalise(self.fc1(described)))
            v = torch.tanh(self.fc2(hidden))
        channel, temporal = v[:, : self.channel_options], v[:, self.channel_options :]
        return Modulation(self._open(channel), self._open(temporal[:, :temporal_options]))

    def _normalise(self, x: Tensor) -> Tensor:
        if x.shape[0] > 1 or not isinstance(self.bn, nn.BatchNorm1d):
            return self.bn(x)
        # One clip has no batch statistics: use the running ones, in training as well.
        bn = self.bn
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)

    def _open(self, v: Tensor) -> Tensor:
        if v.shape[1] == 1:  # nothing to choose; the product keeps the gate in the graph
            return 1 + 0 * v
        v = v.clamp(min=0)
        closed = v.sum(1, keepdim=True) == 0
        return torch.cat((v[:, :-1], v[:, -1:] + self.floor * closed), 1)


def _initial_beta(num_options: int, dominance: float) -> Tensor:
    """Biases from which the weights of a dimension start: the dear one dominant, all open."""
    rest = torch.tensor([0.5**i for i in range(num_options - 1)])
    return torch.atanh(torch.cat((torch.tensor([dominance]), (1 - dominance) * rest / rest.sum())))
