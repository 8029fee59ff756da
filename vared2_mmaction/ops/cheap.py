# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Cheap linear operations: what an option does not compute is rebuilt from what it does."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .options import kept


class PerChannelAffine(nn.Module):
    """``weight * x + bias`` for every rebuilt map. One multiply-add an element.

    Args:
        maps: Number of maps that can be rebuilt.
        gain: Initial weight; 1 copies the source, 0 starts from nothing.
    """

    macs_per_element = 1

    def __init__(self, maps: int, gain: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((maps,), float(gain)))
        self.bias = nn.Parameter(torch.zeros(maps))

    def forward(self, x: Tensor, maps: slice, scale: Tensor | None = None) -> Tensor:
        """Rebuild some maps.

        Args:
            x: Source of each of these maps, (N, maps, T, H, W).
            maps: Which of the operation's maps these are.
            scale: Factor for each clip, (N,).

        Returns:
            The rebuilt maps, of the shape of x.
        """
        weight, bias = self.weight[maps].to(x.dtype), self.bias[maps].to(x.dtype)
        if scale is not None:  # fold the factor into the map's two numbers, not into the map
            weight, bias = (scale[:, None] * p for p in (weight, bias))
        shape = (-1, x.shape[1], 1, 1, 1)
        return torch.addcmul(bias.view(shape), x, weight.view(shape))


class DepthwiseSpatial(nn.Module):
    """A 3 x 3 depthwise convolution for every rebuilt map. Nine multiply-adds an element.

    Args:
        maps: Number of maps that can be rebuilt.
        gain: Initial value of the kernel's centre, the rest of which starts at zero.
    """

    macs_per_element = 9

    def __init__(self, maps: int, gain: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(maps, 1, 1, 3, 3))
        self.bias = nn.Parameter(torch.zeros(maps))
        with torch.no_grad():
            self.weight[..., 1, 1] = gain

    def forward(self, x: Tensor, maps: slice, scale: Tensor | None = None) -> Tensor:
        """Rebuild some maps; see :meth:`PerChannelAffine.forward`."""
        weight, bias = self.weight[maps], self.bias[maps]
        y = F.conv3d(x, weight, bias, padding=(0, 1, 1), groups=x.shape[1])
        return y if scale is None else y * _per_clip(scale, y)


CHEAP_OPERATIONS: dict[str, type[PerChannelAffine] | type[DepthwiseSpatial]] = {
    'affine': PerChannelAffine,
    'depthwise': DepthwiseSpatial,
}


class ChannelOptions(nn.Module):
    """All channel options of a layer, from one convolution.

    Option i keeps the first k_i = ceil(C / 2^i) channels and makes channel c from channel
    c mod k_i: computed ones first, then the rebuilt ones.

    Args:
        channels: Output channels C of the layer.
        num_options: Number of options asked for.
        kind: Name of the cheap operation, a key of ``CHEAP_OPERATIONS``.
    """

    def __init__(self, channels: int, num_options: int, kind: str) -> None:
        super().__init__()
        self.channels = channels
        self.kept = kept(channels, num_options)
        make = CHEAP_OPERATIONS[kind]
        self.macs_per_element = make.macs_per_element
        self.cheap = nn.ModuleList(make(channels - k, gain=0) for k in self.kept[1:])

    def forward(self, z: Tensor, weights: Tensor | None, active: Sequence[int]) -> Tensor:
        """Blend the active options.

        Args:
            z: Computed channels, (N, kept[active[0]], T, H, W).
            weights: Weights of all options, (N, options), or None for a single option of
                weight one.
            active: Indices of the options to blend, rising.

        Returns:
            All channels, (N, C, T, H, W).
        """
        if weights is None and active[0] == 0:
            return z
        bounds = [0, *(self.kept[i] for i in reversed(active)), self.channels]
        segments = [
            self._segment(z, weights, active, start, stop)
            for start, stop in itertools.pairwise(bounds)
            if start < stop
        ]
        return segments[0] if len(segments) == 1 else torch.cat(segments, 1)

    def _segment(
        self, z: Tensor, weights: Tensor | None, active: Sequence[int], start: int, stop: int
    ) -> Tensor:
        """Channels start to stop, which every active option either computes or rebuilds."""
        direct = [i for i in active if self.kept[i] >= stop]
        terms = [_weighted(z[:, start:stop], weights, direct)] if direct else []
        for option in active:
            if self.kept[option] < stop:
                scale = None if weights is None else weights[:, option]
                terms.append(self._rebuild(z, option, start, stop, scale))
        return _sum(terms)

    def _rebuild(
        self, z: Tensor, option: int, start: int, stop: int, scale: Tensor | None
    ) -> Tensor:
        k, operation, parts = self.kept[option], self.cheap[option - 1], []
        for block in range(start // k * k, stop, k):
            low, high = max(start, block), min(stop, block + k)
            parts.append(
                operation(z[:, low - block : high - block], slice(low - k, high - k), scale)
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def macs(self, option: int) -> int:
        """Multiply-adds of an option's cheap operation for each element of one channel."""
        if option == 0:
            return 0
        return (self.channels - self.kept[option]) * self.macs_per_element


class TemporalOptions(nn.Module):
    """All temporal options of a layer, from one convolution.

    Option j keeps frames 0, R, 2R, ... with R = 2^j; each yields the R - 1 frames after it
    through one linear map per offset, cropped at the end of the clip.

    Args:
        channels: Output channels C of the layer.
        num_options: Number of options asked for.
        kind: Name of the cheap operation, a key of ``CHEAP_OPERATIONS``.
    """

    def __init__(self, channels: int, num_options: int, kind: str) -> None:
        super().__init__()
        self.channels = channels
        self.num_options = num_options
        make = CHEAP_OPERATIONS[kind]
        self.macs_per_element = make.macs_per_element
        self.cheap = nn.ModuleList(
            make((2**j - 1) * channels, gain=1) for j in range(1, num_options)
        )

    def forward(
        self, y: Tensor, weights: Tensor | None, active: Sequence[int], frames: int
    ) -> Tensor:
        """Blend the active options.

        Args:
            y: Computed frames, (N, C, ceil(frames / 2^active[0]), H, W).
            weights: Weights of all options, (N, options), or None for a single option of
                weight one.
            active: Indices of the options to blend, rising.
            frames: Output frames T of the layer.

        Returns:
            All frames, (N, C, T, H, W).
        """
        if weights is None and active[0] == 0:
            return y
        period, step = 2 ** active[-1], 2 ** active[0]
        phases = []
        for phase in range(min(period, frames)):
            length = -(-(frames - phase) // period)
            terms = []
            direct = [j for j in active if phase % 2**j == 0]
            if direct:
                terms.append(_weighted(_every(y, phase, period, step, length), weights, direct))
            for option in active:
                offset = phase % 2**option
                if offset:
                    source = _every(y, phase - offset, period, step, length)
                    maps = slice((offset - 1) * self.channels, offset * self.channels)
                    scale = None if weights is None else weights[:, option]
                    terms.append(self.cheap[option - 1](source, maps, scale))
            phases.append(_sum(terms))
        return phases[0] if len(phases) == 1 else _Interleave.apply(frames, *phases)

    def macs(self, option: int, frames: int) -> int:
        """Multiply-adds of an option's cheap operation for each element of one frame."""
        if option == 0:
            return 0
        rebuilt = frames - -(-frames // 2**option)
        return rebuilt * self.channels * self.macs_per_element


class _Interleave(torch.autograd.Function):
    """Lay phases side by side in time; the gradient of each is a view, not a copy."""

    @staticmethod
    def forward(ctx: Any, frames: int, *phases: Tensor) -> Tensor:
        n, c, _, h, w = phases[0].shape
        ctx.period = len(phases)
        out = phases[0].new_empty((n, c, frames, h, w))
        for i, phase in enumerate(phases):
            out[:, :, i :: len(phases)] = phase
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (None, *(grads[0][:, :, i :: ctx.period] for i in range(ctx.period)))


def _every(y: Tensor, first: int, period: int, step: int, length: int) -> Tensor:
    """Frames first, first + period, ... of a clip of which every step-th frame is in y."""
    return y[:, :, first // step :: period // step][:, :, :length]


def _weighted(x: Tensor, weights: Tensor | None, options: list[int]) -> Tensor:
    if weights is None:
        return x
    return x * _per_clip(weights[:, options].sum(1), x)


def _per_clip(scale: Tensor, x: Tensor) -> Tensor:
    return scale.to(x.dtype).view(-1, 1, 1, 1, 1)


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
