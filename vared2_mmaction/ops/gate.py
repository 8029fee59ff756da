# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The soft modulation gate: how much of a layer is computed for a clip."""

import functools
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_linear_bn_weights

from .answer import Modulation
from .watched import BATCH_NORMS, is_plain, is_watched

GRID = 4
"""Rows and columns of positions that a descriptor reads of every frame, at most; reading all would
take as long as a small convolution."""
INITIAL: dict[str, tuple[float, ...]] = {
    'channel': (0.99, 0.1, 0.05, 0.025),
    'temporal': (0.2, 0.3, 0.1, 0.05),
}
"""Weights V that the options of each dimension start with, dearest first: frames are left out
before channels are, and the option after the dearest takes over when that closes."""


def descriptor(x: Tensor, motion: bool) -> Tensor:
    """Describe a clip independently of its length and size.

    Args:
        x: Features, (N, C, T, H, W), of which ``GRID`` rows and columns of every frame are read.
        motion: Whether to append the mean absolute difference of neighbouring frames, without
            which a still clip cannot be told from a moving one.

    Returns:
        Per-channel means, (N, C) or (N, 2 C).
    """
    samples = _sample(x)
    mean = samples.mean((1, 2))
    if not motion:
        return mean
    if x.shape[2] < 2:
        return torch.cat((mean, torch.zeros_like(mean)), 1)
    return torch.cat((mean, samples.diff(dim=1).abs_().mean((1, 2))), 1)


@functools.lru_cache(maxsize=1024)
def _line(size: int) -> tuple[int, int]:
    """First of the positions that are read of a row or column, and the step to the next."""
    step = -(-size // GRID)
    return (size - 1) % step // 2, step


def sample_grid(x: Tensor) -> list[tuple[int, int, int]]:
    """First of the rows that a descriptor reads, the step to the next, and their number; then
    those of columns."""
    lines = [(size, *_line(size)) for size in x.shape[3:]]
    return [(first, step, -(-(size - first) // step)) for size, first, step in lines]


def _sample(x: Tensor) -> Tensor:
    """Positions on a regular grid of every frame, (N, T, positions, C)."""
    first, steps, number = zip(*sample_grid(x), strict=True)
    clips, channels, frames, *positions = x.stride()
    # One view instead of a chain of five: small features take less time than that.
    grid = x.as_strided(
        (x.shape[0], x.shape[2], *number, x.shape[1]),
        (clips, frames, *(p * step for p, step in zip(positions, steps, strict=True)), channels),
        x.storage_offset() + sum(p * f for p, f in zip(positions, first, strict=True)),
    )
    return grid.flatten(2, 3)


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
        if not 0 < floor < 1:
            raise ValueError(f'gate.floor={floor!r}: expected a number between 0 and 1')
        if motion_slope < 0 or (motion_slope and not motion):
            raise ValueError(
                f'gate.motion_slope={motion_slope!r}: expected 0 or more, and 0 with motion=False'
            )
        options = {'channel': channel_options, 'temporal': temporal_options}
        starts = initial_weights(initial, options)
        dear = starts[channel_options:-1]
        if motion_slope and dear and motion_slope >= math.atanh(min(dear)):
            raise ValueError(
                f'gate.motion_slope={motion_slope!r}: expected less than '
                f'{math.atanh(min(dear)):.3f}, or the temporal option that starts at {min(dear)} '
                'is closed for still clips'
            )
        if hidden_channels < 1:
            raise ValueError(f'gate.hidden_channels={hidden_channels!r}: expected at least 1')
        self.in_channels = in_channels
        self.motion = motion
        self.floor = floor
        self.channel_options = channel_options
        self.temporal_options = temporal_options
        self.fc1 = nn.Linear(in_channels * (2 if motion else 1), hidden_channels)
        self.bn = nn.BatchNorm1d(hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, channel_options + temporal_options)
        nn.init.normal_(self.fc2.weight, std=0.002)  # small, so that no option starts closed
        with torch.no_grad():
            self.fc2.bias.copy_(torch.atanh(torch.tensor(starts)))
            if motion_slope:
                # The first hidden feature is the motion of all channels.
                self.fc1.weight[0, :in_channels] = 0
                self.fc1.weight[0, in_channels:] = 1 / in_channels
                self.fc1.bias[0] = 0
                self.fc2.weight[channel_options:-1, 0] = motion_slope

    def can_fuse(self) -> bool:
        """Whether two linear layers are all there is to call, so that a
        :class:`~vared2_mmaction.ops.fused_gate.FusedGate` can take its place; the normalisation has
        been folded then."""
        own = type(self).forward, type(self).weigh
        return (
            own == (SoftModulationGate.forward, SoftModulationGate.weigh)
            and not is_watched(self)
            and type(self.bn) is nn.Identity
            and all(is_plain(fc, nn.Linear) and fc.bias is not None for fc in (self.fc1, self.fc2))
        )

    @property
    def width(self) -> int:
        """Number of options of the dimension that has more of them."""
        return max(self.channel_options, self.temporal_options)

    def macs(self) -> int:
        """Multiply-adds of the two fully connected layers for one clip."""
        return self.fc1.weight.numel() + self.fc2.weight.numel()

    @torch.no_grad()
    def fold_norm(self) -> None:
        """Fold the normalisation into the first layer, in place, for inference; what is no
        BatchNorm of this kind, or is watched, stays."""
        bn = self.bn
        if is_folded_norm(bn) and is_plain(self.fc1, nn.Linear) and self.fc1.bias is not None:
            mean: Any = bn.running_mean
            variance: Any = bn.running_var
            self.fc1.weight, self.fc1.bias = fuse_linear_bn_weights(
                self.fc1.weight, self.fc1.bias, mean, variance, bn.eps, bn.weight, bn.bias
            )
            self.bn = nn.Identity()  # type: ignore[assignment]

    def forward(self, x: Tensor, temporal_options: int) -> Modulation:
        """Weigh the options for every clip.

        Args:
            x: What the gate sees, (N, C, T, H, W).
            temporal_options: Number of temporal options that the clip's length allows.
        """
        with full_precision(x):
            v = self.weigh(describe(x, self.motion, self.fc1.weight.dtype))
        return open_options(v, (self.channel_options, temporal_options), self.floor)

    def weigh(self, described: Tensor) -> Tensor:
        """Weights before any option is switched off.

        Args:
            described: Description of N clips, (N, C) or with motion (N, 2 C).

        Returns:
            (N, 2, width) in (-1, 1), channel options first, zeros behind those of the dimension
            that has fewer.
        """
        v = self.fc2(self._normalise(self.fc1(described)).tanh()).tanh()
        parts = v.split((self.channel_options, self.temporal_options), 1)
        return torch.stack([F.pad(part, (0, self.width - part.shape[1])) for part in parts], 1)

    def _normalise(self, x: Tensor) -> Tensor:
        bn = self.bn
        if x.shape[0] > 1 or not is_folded_norm(bn) or _has_other_processes(bn):
            return bn(x)
        # One clip has no batch statistics: use the running ones, in training as well.
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)


def is_folded_norm(norm: nn.Module) -> bool:
    """Whether a module is a BatchNorm, synchronised or not, with running statistics and nothing
    else to it."""
    return is_plain(norm, *BATCH_NORMS) and norm.running_mean is not None


def _has_other_processes(norm: nn.Module) -> bool:
    """Whether statistics are those of the batches of several processes."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not isinstance(norm, nn.SyncBatchNorm) or not distributed:
        return False
    return torch.distributed.get_world_size(norm.process_group) > 1


def initial_weights(
    initial: Sequence[float] | Mapping[str, Sequence[float]], options: Mapping[str, int]
) -> list[float]:
    """Weights that the options of all dimensions start with, one dimension after the other.

    Args:
        initial: See :class:`SoftModulationGate`.
        options: Number of options of each dimension.

    Raises:
        ValueError: If there is no weight in (0, 1) for every option.
    """
    own = initial if isinstance(initial, Mapping) else dict.fromkeys(options, initial)
    if not set(own) <= set(options):
        raise ValueError(f'gate.initial={initial!r}: expected the keys {list(options)}')
    own = {**INITIAL, **own}
    for name, number in options.items():
        if len(own[name]) < number or not all(0 < v < 1 for v in own[name]):
            raise ValueError(
                f'gate.initial={initial!r}: expected {number} or more numbers between 0 and 1 '
                f'for {name} options'
            )
    return [v for name, number in options.items() for v in own[name][:number]]


def full_precision(x: Tensor) -> AbstractContextManager:
    """Autocasting switched off: gates are evaluated in the type of their parameters."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


def describe(x: Tensor, motion: bool, dtype: torch.dtype) -> Tensor:
    """Descriptor of clips as gates want it.

    Features are not trained to please the gate, and the backward pass is spared.
    """
    return descriptor(x.detach(), motion).to(dtype)


def open_options(v: Tensor, numbers: tuple[int, int], floor: float) -> Modulation:
    """Switch options off, but never all of a dimension.

    Args:
        v: Weights as :meth:`SoftModulationGate.weigh` returns them, (N, 2, width).
        numbers: Numbers of channel and temporal options that there are.
        floor: Weight of the cheapest option where all would be off.

    Returns:
        Weights in [0, 1]; zero is off. Where there is one option, there is nothing to choose, and
        its weight is one.
    """
    slope, offset, cheapest = _opening(numbers, floor, v.shape[-1], v.dtype, v.device)
    v = v.relu() if slope is None else torch.addcmul(offset, v.relu(), slope)
    opened = torch.where(v.amax(-1, keepdim=True) == 0, cheapest, v)
    return Modulation(*(opened[:, i, :number] for i, number in enumerate(numbers)))


@functools.lru_cache(maxsize=512)
def _opening(
    numbers: tuple[int, int], floor: float, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[Any, ...]:
    """Slope and offset that fix options, None if none is fixed, and weights with the floor only."""
    with torch.inference_mode(False):  # the tables serve training as well
        slope, offset, cheapest = (torch.zeros(2, width, dtype=dtype) for _ in range(3))
    for dimension, number in enumerate(numbers):
        slope[dimension, :number] = float(number > 1)
        offset[dimension, 0] = float(number == 1)
        cheapest[dimension, number - 1] = floor
    if slope.all():
        return None, None, cheapest.to(device)
    return slope.to(device), offset.to(device), cheapest.to(device)
