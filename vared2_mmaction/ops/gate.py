# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The soft modulation gate: how much of a layer is computed for a clip."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import AT_LEAST_0, COUNT, FLAG, SHARE, Expected, check

GRID = 4
"""Rows and columns of positions that a descriptor reads of every frame, at most; reading all would
take as long as a small convolution."""
INITIAL: dict[str, tuple[float, ...]] = {
    'channel': (0.99, 0.1, 0.05, 0.025),
    'temporal': (0.2, 0.3, 0.1, 0.05),
}
"""Weights V that the options of each dimension start with, dearest first: frames are left out
before channels are, and the option after the dearest takes over when that closes."""
_EXPECTED = {'hidden_channels': COUNT, 'motion': FLAG, 'floor': SHARE, 'motion_slope': AT_LEAST_0}


class Modulation(NamedTuple):
    """Weights V of the options of one layer, dearest option first.

    An option whose weight is exactly zero is off; at least one is on for every clip.
    """

    channel: Tensor
    """(N, channel options), in [0, 1]."""
    temporal: Tensor
    """(N, temporal options), in [0, 1]."""


def descriptor(x: Tensor, motion: bool) -> Tensor:
    """Describe a clip independently of its length and size.

    Args:
        x: Features, (N, C, T, H, W), of which ``GRID`` rows and columns of every frame are read.
        motion: Whether to append the mean absolute difference of neighbouring frames, without
            which a still clip cannot be told from a moving one.

    Returns:
        Per-channel means, (N, C) or (N, 2 C).
    """
    (row, down, _), (column, right, _) = sample_grid(x)
    samples = x[..., row::down, column::right]
    mean = samples.mean((2, 3, 4))
    if not motion:
        return mean
    if x.shape[2] < 2:
        return torch.cat((mean, torch.zeros_like(mean)), 1)
    return torch.cat((mean, samples.diff(dim=2).abs().mean((2, 3, 4))), 1)


def sample_grid(x: Tensor) -> list[tuple[int, int, int]]:
    """First of the rows that a descriptor reads, the step to the next, and their number; then
    those of columns."""
    lines = []
    for size in x.shape[3:]:
        step = -(-size // GRID)
        first = (size - 1) % step // 2
        lines.append((first, step, -(-(size - first) // step)))
    return lines


class SoftModulationGate(nn.Module):
    """Soft modulation gate of one convolution.

    ``V = max(tanh(FC2(tanh(BN(FC1(descriptor(x))))) + beta), 0)`` for the options of both
    dimensions; beta is the bias of FC2. Training and inference evaluate the same function:
    nothing is sampled and no maximum is picked.

    After the idea of VA-RED2 (Pan et al., ICLR 2021); descriptor and floor are choices of this
    project.

    Args:
        in_channels: Channels C of the features that the gate sees.
        channel_options: Number of channel options.
        temporal_options: Largest number of temporal options; a short clip has fewer.
        hidden_channels: Width of the hidden layer.
        motion: Whether the descriptor sees motion.
        initial: Weights V that the options of a dimension start with, dearest first, each in
            (0, 1): all open, so that every option gets a gradient. What starts lower closes first.
            A mapping with the keys ``channel`` and ``temporal`` gives each dimension its own, and
            one that it lacks has that of ``INITIAL``, which is the default of both.
        floor: Weight of the cheapest option where all options would be off, in (0, 1).
        motion_slope: How much more, or less, the weights of temporal options start with where a
            clip moves more, or less, than others of its batch; before the last tanh, at most. All
            but the cheapest option have it, so that the frames of a still clip are the first that
            are left out. Training goes on from there.
    """

    cheapest: Tensor
    """Weights where all options of a dimension would be off."""

    def __init__(
        self,
        in_channels: int,
        channel_options: int,
        temporal_options: int,
        hidden_channels: int = 32,
        motion: bool = True,
        initial: Sequence[float] | Mapping[str, Sequence[float]] = INITIAL,
        floor: float = 0.05,
        motion_slope: float = 0.0,
    ) -> None:
        super().__init__()
        given = (hidden_channels, motion, floor, motion_slope)
        for (key, expected), value in zip(_EXPECTED.items(), given, strict=True):
            check(f'dynamic.gate.{key}', value, expected)
        slope = f'dynamic.gate.motion_slope={motion_slope!r}'
        if motion_slope and not motion:
            raise ValueError(f'{slope}: expected 0 with motion=False')
        options = {'channel': channel_options, 'temporal': temporal_options}
        starts = _initial_weights(initial, options)
        dear = starts[channel_options:-1]
        if motion_slope and dear and motion_slope >= math.atanh(min(dear)):
            raise ValueError(
                f'{slope}: expected less than {math.atanh(min(dear)):.3f}, or the temporal option '
                f'that starts at {min(dear)} is closed for still clips'
            )
        self.in_channels = in_channels
        self.motion, self.floor = motion, floor
        self.channel_options = channel_options
        self.temporal_options = temporal_options
        self.fc1 = nn.Linear(in_channels * (2 if motion else 1), hidden_channels)
        self.bn = nn.BatchNorm1d(hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, channel_options + temporal_options)
        off = [0.0] * (max(options.values()) - 1)
        self.register_buffer('cheapest', torch.tensor([*off, floor]), persistent=False)
        nn.init.normal_(self.fc2.weight, std=0.002)  # small, so that no option starts closed
        with torch.no_grad():
            self.fc2.bias.copy_(torch.atanh(torch.tensor(starts)))
            if motion_slope:
                # The first hidden feature is the motion of all channels.
                self.fc1.weight[0, :in_channels] = 0
                self.fc1.weight[0, in_channels:] = 1 / in_channels
                self.fc1.bias[0] = 0
                self.fc2.weight[channel_options:-1, 0] = motion_slope

    def macs(self) -> int:
        """Multiply-adds of the two fully connected layers for one clip."""
        return self.fc1.weight.numel() + self.fc2.weight.numel()

    def forward(self, x: Tensor, temporal_options: int) -> Modulation:
        """Weigh the options for every clip.

        Args:
            x: Input of the layer, (N, C, T, H, W).
            temporal_options: Number of temporal options that the clip's length allows.
        """
        device = x.device.type
        casts = torch.is_autocast_enabled(device)  # gates keep their parameters' type
        with torch.autocast(device, enabled=False) if casts else nullcontext():
            described = descriptor(x.detach(), self.motion)  # quantised weights have no type
            v = self.weigh(described.to(getattr(self.fc1.weight, 'dtype', torch.float))).relu()
        sizes = self.channel_options, temporal_options, self.temporal_options - temporal_options
        if sizes[0] == sizes[1] and not sizes[2]:  # both dimensions at once
            return Modulation(*open_options(v.unflatten(1, (2, -1)), self.cheapest).unbind(1))
        channel, temporal, *_ = v.split([size for size in sizes if size], 1)
        return Modulation(*(open_options(part, self.cheapest) for part in (channel, temporal)))

    def weigh(self, described: Tensor) -> Tensor:
        """Weights before any option is switched off, (N, options of both dimensions) in (-1, 1).

        Args:
            described: Description of N clips, (N, C) or with motion (N, 2 C).
        """
        hidden, bn = self.fc1(described), self.bn
        # One clip has no batch statistics: use the running ones, in training as well.
        if len(hidden) == 1 and bn.training and has_running_statistics(bn):
            statistics = bn.running_mean, bn.running_var
            hidden = F.batch_norm(hidden, *statistics, bn.weight, bn.bias, eps=bn.eps)
        else:
            hidden = bn(hidden)
        return self.fc2(hidden.tanh()).tanh()


def has_running_statistics(norm: nn.Module) -> bool:
    """Whether a BatchNorm has statistics to go by, and no other process's batch to learn from."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if isinstance(norm, nn.SyncBatchNorm) and distributed:
        return torch.distributed.get_world_size(norm.process_group) == 1
    return getattr(norm, 'running_mean', None) is not None


def _initial_weights(
    initial: Sequence[float] | Mapping[str, Sequence[float]], options: Mapping[str, int]
) -> list[float]:
    """Weights that the options of all dimensions start with, one dimension after the other;
    ``options`` are how many there are of each."""
    key, by_dimension = 'dynamic.gate.initial', isinstance(initial, Mapping)
    own: Any = initial if by_dimension else dict.fromkeys(options, initial)
    if not set(own) <= set(options):
        raise ValueError(f'{key}={initial!r}: expected the keys {list(options)}')
    weights: list[float] = []
    for name, number in options.items():
        given, where = own.get(name, INITIAL[name]), f'{key}.{name}' if by_dimension else key
        check(where, given, Expected(Sequence, f'a list, of each option {SHARE.words}'))
        for i, weight in enumerate(given):
            check(f'{where}[{i}]', weight, SHARE)
        if len(given) < number:
            raise ValueError(f'{where}={given!r}: expected {number} or more for {name} options')
        weights += given[:number]
    return weights


def open_options(v: Tensor, cheapest: Tensor) -> Tensor:
    """Leave no dimension with all of its options off.

    Args:
        v: Weights of the options, (..., options) in [0, 1).
        cheapest: Weights where all would be off, of as many options or more.

    Returns:
        Weights in [0, 1]; zero is off. Where there is one option, there is nothing to choose, and
        its weight is one.
    """
    if (number := v.shape[-1]) == 1:
        return torch.ones_like(v)
    # A sum rather than torch.where, whose gradient takes kernels more.
    return torch.addcmul(v, ~v.any(-1, keepdim=True), cheapest[-number:])
