# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Cheap linear operations: what an option does not compute is rebuilt from what it does."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layout import as_clips, as_frames, interleave, layout, repeat
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
        maps: Number of maps that each cheaper option rebuilds.
        kind: Name of the cheap operation, a key of ``CHEAP_OPERATIONS``.
    """

    used: Tensor
    """Which options are in use, (options,); kept in checkpoints."""
    in_use: tuple[int, ...]
    """The same as numbers, rising."""

    def __init__(self, channels: int, maps: Sequence[int], kind: str) -> None:
        super().__init__()
        make = CHEAP_OPERATIONS[kind]
        self.channels = channels
        self.macs_per_element = make.macs_per_element
        self.cheap = nn.ModuleList(make(m) for m in maps)
        self.register_buffer('used', torch.ones(1 + len(maps), dtype=torch.bool))
        self.in_use = tuple(range(1 + len(maps)))

    @property
    def affine(self) -> bool:
        """Whether every map is rebuilt from one value each."""
        return self.macs_per_element == PerChannelAffine.macs_per_element

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

    def padded(self, option: int, computed: int) -> tuple[Tensor, Tensor]:
        """Scale and shift of all maps of an option, (R, C) each; the first are computed."""
        if option == 0:
            ones = self.used.new_ones(1, self.channels, dtype=torch.get_default_dtype())
            return ones, torch.zeros_like(ones)
        operation = self.operation(option)
        pairs = ((operation.weight, 1.0), (operation.bias, 0.0))
        scale, shift = (
            F.pad(parameter, (computed, 0), value=value).view(-1, self.channels)
            for parameter, value in pairs
        )
        return scale, shift

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
        sizes = kept(channels, num_options, multiple)
        super().__init__(channels, [channels - k for k in sizes[1:]], kind)
        self.kept, self.multiple = sizes, multiple

    def maps(self, z: Tensor, option: int) -> Tensor:
        """Maps of an option, all channels; affine operations are still to be applied.

        Args:
            z: Computed channels, (N, kept[option] or more, T, H, W).
            option: The option.
        """
        k = self.kept[option]
        if option == 0:
            return z
        computed = z[:, :k]
        copies = repeat(computed, 1, -(-self.channels // k), False, layout(z))
        if copies.shape[1] > self.channels:
            copies = copies[:, : self.channels]
        if self.affine:
            return copies
        return torch.cat((computed, self.operation(option)(copies[:, k:], slice(None))), 1)

    def table(self, option: int) -> tuple[Tensor, Tensor]:
        """Scale and shift of an option's maps by an affine operation, (1, C) each; one and zero
        where channels are computed."""
        return self.padded(option, self.kept[option])


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
        maps = [(2**j - 1) * channels for j in range(1, num_options)]
        super().__init__(channels, maps, kind)
        self.num_options = num_options

    def maps(self, y: Tensor, computed: int, option: int, frames: int) -> Tensor:
        """Maps of an option, all frames; affine operations are still to be applied.

        Args:
            y: Frames of a dearer option, or of this one, (N, C, ceil(frames / 2^computed), H, W).
            computed: That option.
            option: The option.
            frames: Output frames T.
        """
        if option == 0:
            return y
        sources, stride = y[:, :, :: 2 ** (option - computed)], 2**option
        if self.affine:
            copies = repeat(sources, 2, stride, True, layout(y))
        else:
            rebuilt = [self._rebuild(sources, option, d, frames) for d in range(1, stride)]
            copies = interleave((sources, *rebuilt), layout(y))
        return copies if copies.shape[2] == frames else copies[:, :, :frames]

    def _rebuild(self, sources: Tensor, option: int, offset: int, frames: int) -> Tensor:
        """Frames of one offset; zeros, which nobody reads, behind the end of the clip."""
        number = -(-(frames - offset) // 2**option)
        maps = slice((offset - 1) * self.channels, offset * self.channels)
        rebuilt = self.operation(option)(sources[:, :, :number], maps)
        beyond = sources.shape[2] - number
        return F.pad(rebuilt, (0, 0, 0, 0, 0, beyond)) if beyond else rebuilt

    def table(self, option: int) -> tuple[Tensor, Tensor]:
        """Scale and shift of an option's maps by an affine operation, (2^option, C) each, frame
        offset by frame offset; one and zero where frames are computed."""
        return self.padded(option, self.channels)
