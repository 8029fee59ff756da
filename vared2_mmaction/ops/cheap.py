# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Cheap linear operations: what an option does not compute is rebuilt from what it does."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .options import kept


class PerChannelAffine(nn.Module):
    """``weight * x + bias`` for every rebuilt map, a copy at first. One multiply-add an element.

    Args:
        maps: Number of maps that can be rebuilt.
    """

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(maps))
        self.bias = nn.Parameter(torch.zeros(maps))


class _Options(nn.Module):
    """What the options of both dimensions share.

    Args:
        channels: Output channels C of the layer.
        computed: Number of maps that each option computes, for each of its computed frames.
        maps: Number of maps that it makes of these; the first option makes no others.
    """

    used: Tensor
    """Which options are in use, (options,); kept in checkpoints."""
    in_use: tuple[int, ...]
    """The same as numbers, rising."""

    def __init__(self, channels: int, computed: Sequence[int], maps: Sequence[int]) -> None:
        super().__init__()
        self.channels, self._computed, self._maps = channels, computed, maps
        rebuilt = (m - k for m, k in zip(maps[1:], computed[1:], strict=True))
        self.cheap = nn.ModuleList(map(PerChannelAffine, rebuilt))
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
        """Scales and shifts of all maps of options, one and zero where maps are computed:
        (2, options, 1, C) of channel options, and of temporal ones (2, options, R, C), frame offset
        by frame offset of the cheapest."""
        return torch.cat(self.rows(options)).view(2, len(options), -1, self.channels)

    def rows(self, options: tuple[int, ...]) -> list[Tensor]:
        """What :meth:`tables` is put together from, all scales before the shifts."""
        rows: list[Tensor] = []
        for name, value in (('weight', 1.0), ('bias', 0.0)):
            computed = torch.full((self.channels,), value, device=self.used.device)
            for option in options:
                k, times = self._computed[option], self._maps[options[-1]] // self._maps[option]
                rebuilt = [getattr(self.operation(option), name)] if option else []
                rows += [computed[:k], *rebuilt] * times
        return rows

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
        multiple: What k_i is rounded down to a multiple of; see
            :func:`~vared2_mmaction.ops.kept`.
    """

    def __init__(self, channels: int, num_options: int, multiple: int = 1) -> None:
        numbers = kept(channels, num_options, multiple)
        super().__init__(channels, numbers, [channels] * len(numbers))
        self.kept = numbers


class TemporalOptions(_Options):
    """All temporal options of a layer, from one convolution.

    Option j keeps frames 0, R, 2R, ... with R = 2^j; each yields the R - 1 frames after it
    through one linear map per offset, cropped at the end of the clip.

    Args:
        channels: Output channels C of the layer.
        num_options: Number of options asked for.
    """

    def __init__(self, channels: int, num_options: int) -> None:
        maps = [2**j * channels for j in range(num_options)]
        super().__init__(channels, [channels] * num_options, maps)
        self.num_options = num_options
