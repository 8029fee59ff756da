# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What gates answered for many clips: counts, shares, and gates that always answer the same."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from mmengine import dist
from torch import Tensor

from ..ops.options import MAX_OPTIONS

DIMENSIONS = ('channel', 'temporal')


@dataclass
class Usage:
    """How often the gates of some layers answered what, and what that cost."""

    counts: Tensor
    """(layers, 4, 4) in int64 on the CPU: clips with p_c and p_t."""
    ratio_sum: float = 0.0
    """Sum of the compute ratios of all clips."""
    ratio_min: float = math.inf
    ratio_max: float = -math.inf

    @classmethod
    def none(cls, layers: int) -> 'Usage':
        """The usage of no clips."""
        return cls(torch.zeros(layers, MAX_OPTIONS, MAX_OPTIONS, dtype=torch.int64))

    @classmethod
    def count(cls, policy: Tensor, ratio: Tensor) -> 'Usage':
        """Count policies, (N, layers, 2), and ratios, (N,), of N > 0 clips, on the host."""
        policy, ratio = policy.cpu(), ratio.cpu().double()
        layers = policy.shape[1]
        cells = MAX_OPTIONS * (MAX_OPTIONS * torch.arange(layers) + policy[..., 0]) + policy[..., 1]
        counts = torch.bincount(cells.flatten(), minlength=layers * MAX_OPTIONS**2)
        return cls(
            counts.view(layers, MAX_OPTIONS, MAX_OPTIONS),
            ratio.sum().item(),
            ratio.min().item(),
            ratio.max().item(),
        )

    def over_processes(self) -> 'Usage':
        """Usage of the clips of all processes, in each of them; itself where there is but one."""
        sums = torch.cat((self.counts.flatten().double(), torch.tensor([self.ratio_sum]).double()))
        extremes = torch.tensor([-self.ratio_min, self.ratio_max], dtype=torch.float64)
        dist.all_reduce(sums, 'sum')
        dist.all_reduce(extremes, 'max')
        low, high = extremes.tolist()
        counts = sums[:-1].long().view_as(self.counts)
        return Usage(counts, sums[-1].item(), -low, high)

    def __add__(self, other: 'Usage') -> 'Usage':
        return Usage(
            self.counts + other.counts,
            self.ratio_sum + other.ratio_sum,
            min(self.ratio_min, other.ratio_min),
            max(self.ratio_max, other.ratio_max),
        )

    @property
    def clips(self) -> int:
        """Number of clips."""
        return int(self.counts[:1].sum())

    def scalars(self, options: dict[str, tuple[int, int]], per_layer: bool) -> dict[str, float]:
        """Shares of clips with each option, and the compute ratio of clips; of at least one clip.

        ``options`` are the numbers of channel and temporal options of each layer by name; of a
        single one there are no shares. ``per_layer`` adds those of every layer to their mean.
        """
        ratios = (self.ratio_sum / self.clips, self.ratio_min, self.ratio_max)
        names = ('mean', 'min', 'max')
        result = {f'usage/compute_ratio_{k}': v for k, v in zip(names, ratios, strict=True)}
        of_layers: dict[str, float] = {}
        for d, dimension in enumerate(DIMENSIONS):
            shares = self.counts.sum(2 - d).double() / self.clips
            choosing = [i for i, numbers in enumerate(options.values()) if numbers[d] > 1]
            most = max((numbers[d] for numbers in options.values()), default=1)
            for p in range(most if choosing else 0):
                result[f'usage/{dimension}_{p}'] = shares[choosing, p].mean().item()
            for (layer, numbers), share in zip(options.items(), shares.tolist(), strict=True):
                for p in range(numbers[d] if numbers[d] > 1 else 0):
                    of_layers[f'usage/{layer}/{dimension}_{p}'] = share[p]
        return {**result, **of_layers} if per_layer else result

    def same_answers(self, options: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        """Layers that have a choice and answered (p_c, p_t) for every clip, with that answer."""
        always = (self.counts == self.clips).flatten(1)
        return {
            layer: divmod(int(cells.int().argmax()), MAX_OPTIONS)
            for (layer, numbers), cells in zip(options.items(), always, strict=True)
            if self.clips and max(numbers) > 1 and cells.any()
        }


def name_layers(said: Mapping[str, Collection[str]], among: Sequence[str]) -> str:
    """What is said of layers, each with their names; see :func:`shorten`."""
    parts = (f'{what} {", ".join(shorten(names, among))}' for what, names in said.items())
    return '; '.join(parts)


def shorten(names: Collection[str], among: Sequence[str]) -> list[str]:
    """Names of modules, those that share a prefix with no other module as ``prefix.*``.

    Args:
        names: What to name, some of ``among``.
        among: Names of all modules in question.

    Examples:
        >>> shorten(['a.0.x', 'a.0.y', 'a.1.x'], ['a.0.x', 'a.0.y', 'a.1.x', 'a.1.y'])
        ['a.0.*', 'a.1.x']
    """

    def short(name: str) -> str:
        parts = name.split('.')
        for depth in range(1, len(parts)):
            prefix = '.'.join(parts[:depth]) + '.'
            within = [other for other in among if other.startswith(prefix)]
            if len(within) > 1 and set(within) <= set(names):
                return f'{prefix}*'
        return name

    return list(dict.fromkeys(short(name) for name in among if name in set(names)))
