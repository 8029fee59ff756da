# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Cheap linear operations: what an option does not compute is rebuilt from what it does."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layout import as_clips, as_frames
from .options import kept


class PerChannelAffine(nn.Module):
    """``weight * x + bias`` for every rebuilt map, a copy at first. One multiply-add an element.

    Args:
        maps: Number of maps that can be rebuilt.
    """

    macs_per_element = 1

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(maps))
        self.bias = nn.Parameter(torch.zeros(maps))


class DepthwiseSpatial(nn.Module):
    """A 3 x 3 depthwise convolution for every rebuilt map, a copy at first.

    Nine multiply-adds an element.

    Args:
        maps: Number of maps that can be rebuilt.
    """

    macs_per_element = 9

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(maps, 1, 3, 3))
        self.bias = nn.Parameter(torch.zeros(maps))
        with torch.no_grad():
            self.weight[..., 1, 1] = 1

    def forward(self, copies: Tensor, maps: slice) -> Tensor:
        """Rebuild some of the operation's maps from copies of computed ones, (N, maps, T, H, W)."""
        # Over frames in 2-D: several times as fast as the same convolution in 3-D.
        frames, weight = as_frames(copies), self.weight[maps]
        y = F.conv2d(frames, weight, self.bias[maps], padding=1, groups=len(weight))
        return as_clips(y, copies.shape[2])


CHEAP_OPERATIONS: dict[str, type[PerChannelAffine] | type[DepthwiseSpatial]] = {
    'affine': PerChannelAffine,
    'depthwise': DepthwiseSpatial,
}


class _Options(nn.Module):
    """What the options of both dimensions share.

    Args:
        channels: Output channels C of the layer.
        computed: Number of maps that each option computes, for each of its computed frames.
        maps: Number of maps that it makes of these; the first option makes no others.
        kind: Name of the cheap operation, a key of ``CHEAP_OPERATIONS``.
    """

    used: Tensor
    """Which options are in use, (options,); kept in checkpoints."""
    in_use: tuple[int, ...]
    """The same as numbers, rising."""
    affine: bool
    """Whether every map is rebuilt from one value each."""

    def __init__(
        self, channels: int, computed: Sequence[int], maps: Sequence[int], kind: str
    ) -> None:
        super().__init__()
        make = CHEAP_OPERATIONS[kind]
        self.channels, self._computed, self._maps = channels, computed, maps
        self.macs_per_element = make.macs_per_element
        self.affine = make is PerChannelAffine
        rebuilt = (m - k for m, k in zip(maps[1:], computed[1:], strict=True))
        self.cheap = nn.ModuleList(map(make, rebuilt))
        self.register_buffer('used', torch.ones(len(maps), dtype=torch.bool))
        self.in_use = tuple(range(len(maps)))

    def use(self, options: Iterable[int]) -> None:
        """Take all options but these out of use: they are neither computed nor mixed.

        Raises:
            ValueError: If there is none of them.
        """
        in_use = tuple(sorted(set(options) & set(range(len(self.used)))))
        if not in_use:
            raise ValueError(f'expected an option of 0 to {len(self.used) - 1} to be left in use')
        self.in_use = in_use
        self.used.copy_(torch.tensor([i in in_use for i in range(len(self.used))]))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        # Checkpoints from before options were taken out of use have all of them.
        used = state.setdefault(f'{prefix}used', torch.ones_like(self.used))
        super()._load_from_state_dict(state, prefix, *args)
        if isinstance(used, Tensor) and used.shape == self.used.shape:
            self.use([i for i, one in enumerate(used.tolist()) if one])

    def tables(self, options: tuple[int, ...]) -> Tensor:
        """Scales and shifts of all maps of options by affine operations, one and zero where maps
        are computed: (2, options, 1, C) of channel options, and of temporal ones
        (2, options, R, C), frame offset by frame offset of the cheapest."""
        ones = torch.ones(self.channels, device=self.used.device)
        zeros = torch.zeros_like(ones)
        scales: list[Tensor] = []
        shifts: list[Tensor] = []
        for option in options:
            k, times = self._computed[option], self._maps[options[-1]] // self._maps[option]
            scale, shift = [ones[:k]], [zeros[:k]]
            if option:
                operation = self.operation(option)
                scale.append(operation.weight)
                shift.append(operation.bias)
            scales += scale * times
            shifts += shift * times
        return torch.cat(scales + shifts).view(2, len(options), -1, self.channels)

    def operation(self, option: int) -> Any:
        """The cheap operation of an option, 1 or more."""
        return self.cheap[option - 1]


class ChannelOptions(_Options):
    """All channel options of a layer, from one convolution.

    Option i keeps the first k_i = ceil(C / 2^i) channels, or a little fewer, and makes channel c
    from channel c mod k_i: computed ones first, then the rebuilt ones.

    Args:
        channels: Output channels C of the layer.
        num_options: Number of options asked for.
        kind: Name of the cheap operation, a key of ``CHEAP_OPERATIONS``.
        multiple: What k_i is rounded down to a multiple of; see
            :func:`~vared2_mmaction.ops.kept`.
    """

    def __init__(self, channels: int, num_options: int, kind: str, multiple: int = 1) -> None:
        numbers = kept(channels, num_options, multiple)
        super().__init__(channels, numbers, [channels] * len(numbers), kind)
        self.kept = numbers


class TemporalOptions(_Options):
    """All temporal options of a layer, from one convolution.

    Option j keeps frames 0, R, 2R, ... with R = 2^j; each yields the R - 1 frames after it
    through one linear map per offset, cropped at the end of the clip.

    Args:
        channels: Output channels C of the layer.
        num_options: Number of options asked for.
        kind: Name of the cheap operation, a key of ``CHEAP_OPERATIONS``.
    """

    def __init__(self, channels: int, num_options: int, kind: str) -> None:
        maps = [2**j * channels for j in range(num_options)]
        super().__init__(channels, [channels] * num_options, maps, kind)
        self.num_options = num_options
