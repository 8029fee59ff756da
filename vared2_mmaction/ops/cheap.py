# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Cheap linear operations: what an option does not compute is rebuilt from what it does."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .forms import as_clips, as_frames
from .mix import Mix, Region, Source
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

    def factors(self, scale: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """What :meth:`rebuild` needs for all maps.

        Args:
            scale: Factor for each clip, (N, 1), or None.
            dtype: Type of the maps.
        """
        parameters = (p[None].to(dtype) for p in (self.weight, self.bias))
        return tuple(p if scale is None else scale * p for p in parameters)

    def rebuild(self, x: Tensor, region: Region, maps: slice, factors: tuple) -> Source:
        """Rebuild maps from a region of other maps.

        Args:
            x: Computed maps, (N, C, T, H, W).
            region: The source of each rebuilt map in x.
            maps: Which of the operation's maps are rebuilt.
            factors: What :meth:`factors` returned.

        Returns:
            The source with factors that make it the scaled rebuilt maps.
        """
        weight, bias = factors
        return Source(x, region, weight[:, maps], bias[:, maps])


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

    def factors(self, scale: Tensor | None, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
        """What :meth:`rebuild` needs; see :meth:`PerChannelAffine.factors`."""
        return (scale,)

    def rebuild(self, x: Tensor, region: Region, maps: slice, factors: tuple) -> Source:
        """Rebuild maps; see :meth:`PerChannelAffine.rebuild`."""
        (scale,) = factors
        source = x[region]
        groups, frames = source.shape[1:3]
        # Over frames in 2-D: several times as fast as the same convolution in 3-D.
        y = F.conv2d(
            as_frames(source), self.weight[maps], self.bias[maps], padding=1, groups=groups
        )
        y = as_clips(y, frames)
        return Source(y, _EVERYTHING, None if scale is None else scale.expand(-1, groups))


CHEAP_OPERATIONS: dict[str, type[PerChannelAffine] | type[DepthwiseSpatial]] = {
    'affine': PerChannelAffine,
    'depthwise': DepthwiseSpatial,
}
_ALL = slice(None)
_EVERYTHING: Region = (_ALL, _ALL, _ALL)


class _Options(nn.Module):
    """What the options of both dimensions share: the sum of computed and rebuilt maps.

    Args:
        channels: Output channels C of the layer.
        maps: Number of maps that each cheaper option rebuilds.
        kind: Name of the cheap operation, a key of ``CHEAP_OPERATIONS``.
    """

    ones: Tensor
    zeros: Tensor

    def __init__(self, channels: int, maps: Sequence[int], kind: str) -> None:
        super().__init__()
        make = CHEAP_OPERATIONS[kind]
        self.channels = channels
        self.macs_per_element = make.macs_per_element
        self.cheap = nn.ModuleList(make(m) for m in maps)
        self.register_buffer('ones', torch.ones(channels), persistent=False)
        self.register_buffer('zeros', torch.zeros(channels), persistent=False)

    @property
    def affine(self) -> bool:
        """Whether every map is rebuilt from one value each."""
        return self.macs_per_element == PerChannelAffine.macs_per_element

    def _direct(
        self,
        x: Tensor,
        region: Region,
        weights: Tensor | None,
        options: Sequence[int],
        every: bool,
    ) -> Source:
        """A region that these options compute; every says that their weights sum to one."""
        if weights is None or every:
            return Source(x, region, None)
        channels = len(range(x.shape[1])[region[1]])
        return Source(x, region, weights[:, options].sum(1, keepdim=True).expand(-1, channels))

    def _operation(self, option: int) -> PerChannelAffine | DepthwiseSpatial:
        operation = self.cheap[option - 1]
        assert isinstance(operation, PerChannelAffine | DepthwiseSpatial)
        return operation

    def _factors(
        self, weights: Tensor | None, active: Sequence[int], dtype: torch.dtype
    ) -> dict[int, tuple]:
        """What each cheaper active option needs to rebuild maps, scaled by its weights."""
        scales = {i: None if weights is None else weights[:, i, None] for i in active if i}
        return {i: self._operation(i).factors(scale, dtype) for i, scale in scales.items()}


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

    def forward(
        self, z: Tensor, weights: Tensor | None, active: Sequence[int], normalised: bool = False
    ) -> Tensor:
        """Blend the active options.

        Args:
            z: Computed channels, (N, kept[active[0]], T, H, W).
            weights: Weights of all options, (N, options), or None for a single option of
                weight one.
            active: Indices of the options to blend, rising.
            normalised: Whether the weights of the active options sum to one.

        Returns:
            All channels, (N, C, T, H, W).
        """
        if active[0] == 0 and weights is None:
            return z
        cuts = {0, self.channels}
        for option in active:  # where a source ends, a segment ends
            cuts.update(range(self.kept[option], self.channels, self.kept[option]))
        mix, factors = Mix(), self._factors(weights, active, z.dtype)
        for start, stop in itertools.pairwise(sorted(cuts)):
            direct = [i for i in active if self.kept[i] >= stop]
            sources = []
            if direct:
                region = (_ALL, slice(start, stop), _ALL)
                every = normalised and len(direct) == len(active)
                sources.append(self._direct(z, region, weights, direct, every))
            for option in active:
                if (k := self.kept[option]) < stop:
                    region = (_ALL, slice(start % k, start % k + stop - start), _ALL)
                    maps = slice(start - k, stop - k)
                    rebuild = self._operation(option).rebuild
                    sources.append(rebuild(z, region, maps, factors[option]))
            mix.add((_ALL, slice(start, stop), _ALL), sources)
        return mix.write((z.shape[0], self.channels, *z.shape[2:]), z)

    def affine_factors(self, option: int) -> tuple[Tensor, Tensor]:
        """Scale and shift of an option, (C,) each; one and zero where channels are computed."""
        if option == 0:
            return self.ones, self.zeros
        operation, k = self._operation(option), self.kept[option]
        return (
            torch.cat((self.ones[:k], operation.weight)),
            torch.cat((self.zeros[:k], operation.bias)),
        )


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

    def forward(
        self,
        y: Tensor,
        weights: Tensor | None,
        active: Sequence[int],
        frames: int,
        normalised: bool = False,
    ) -> Tensor:
        """Blend the active options.

        Args:
            y: Computed frames, (N, C, ceil(frames / 2^active[0]), H, W).
            weights: Weights of all options, (N, options), or None for a single option of
                weight one.
            active: Indices of the options to blend, rising.
            frames: Output frames T of the layer.
            normalised: Whether the weights of the active options sum to one.

        Returns:
            All frames, (N, C, T, H, W).
        """
        if active[0] == 0 and weights is None:
            return y
        period, step = 2 ** active[-1], 2 ** active[0]
        mix, factors = Mix(), self._factors(weights, active, y.dtype)
        for phase in range(min(period, frames)):
            length = -(-(frames - phase) // period)

            def every(first: int, length: int = length) -> Region:
                start, stride = first // step, period // step
                return _ALL, _ALL, slice(start, start + (length - 1) * stride + 1, stride)

            direct = [j for j in active if phase % 2**j == 0]
            sources = []
            if direct:
                whole = normalised and len(direct) == len(active)
                sources.append(self._direct(y, every(phase), weights, direct, whole))
            for option in active:
                if offset := phase % 2**option:
                    maps = slice((offset - 1) * self.channels, offset * self.channels)
                    rebuild = self._operation(option).rebuild
                    sources.append(rebuild(y, every(phase - offset), maps, factors[option]))
            mix.add((_ALL, _ALL, slice(phase, None, period)), sources)
        return mix.write((*y.shape[:2], frames, *y.shape[3:]), y)

    def affine_factors(self, option: int) -> tuple[Tensor, Tensor]:
        """Scale and shift of an option, (R, C) each; one and zero where frames are computed."""
        if option == 0:
            return self.ones[None], self.zeros[None]
        operation = self._operation(option)
        scale, shift = (p.view(-1, self.channels) for p in (operation.weight, operation.bias))
        return torch.cat((self.ones[None], scale)), torch.cat((self.zeros[None], shift))
