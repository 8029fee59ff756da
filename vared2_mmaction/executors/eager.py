# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Executes the definition group by group: clips whose dearest options are the same compute no more
than these."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..layout import empty_clips, layout
from ..ops import Modulation, Options, kept
from ..ops.conv import forced_weights
from ..ops.cost import Decision, LayerConstants, LayerCost, layer_cost
from ..ops.mixing import shares
from .base import Charges
from .cpu.packed import PackedConvolution
from .records import is_dynamic


class Group(NamedTuple):
    """Clips whose dearest options are the same."""

    rows: list[int]
    active: tuple[list[int], list[int]]
    """Options of each dimension that are on for any of them, rising, counted among those in use."""


class Eager:
    """Executor of every convolution, by PyTorch's operations.

    Args:
        conv: A convolution of the definition, or a stock one, with normalisation folded.
        relu: Whether ReLU follows.
        packed: Takes the place of the definition's ``convolve`` for the inputs that it serves.
    """

    def __init__(
        self, conv: Any, relu: bool = False, packed: PackedConvolution | None = None
    ) -> None:
        self.conv, self.relu, self.packed = conv, relu, packed
        self.is_dynamic = is_dynamic(conv)

    def __call__(
        self, x: Tensor, residual: Tensor | None = None, forced: Tensor | None = None
    ) -> tuple[Tensor, Charges]:
        """Decide on the host, and execute; see :class:`~.base.Executor`."""
        y, charges = self._execute_dynamic(x, forced) if self.is_dynamic else self._execute(x)
        in_place = not torch.is_grad_enabled()
        if residual is not None:
            same = in_place and y.dtype == residual.dtype
            y = y.add_(residual) if same else y + residual
        if self.relu:
            y = y.relu_() if in_place else y.relu()
        return y, charges

    def _execute(self, x: Tensor) -> tuple[Tensor, int]:
        if self.packed is None or not self.packed.serves(x):
            y = self.conv(x)
        else:
            y = self.packed(x) if x.dim() == 5 else self.packed(x.unsqueeze(2)).squeeze(2)
        return y, y.numel() * math.prod(self.conv.weight.shape[1:])

    def _execute_dynamic(self, x: Tensor, forced: Tensor | None) -> tuple[Tensor, Decision]:
        conv = self.conv
        clips = conv.to_clips(x)
        options = conv.options_of(clips.shape[2])
        weights, rows = decide(conv, clips, options, forced)
        groups = divide(rows)
        if len(groups) == 1:
            y = self._modulate(clips, weights, options, groups[0].active)
        else:
            if not torch.is_grad_enabled() and clips[0].numel() > conv.weight.numel():
                groups = in_runs(groups)
            y = self._modulate_all(clips, weights, options, groups)
        number, area = conv.temporal_options.num_options, y.shape[-2] * y.shape[-1]
        cost = _cost(conv.constants, options, number, y.shape[2], area)
        return conv.from_clips(y), Decision(weights, cost)

    def _modulate_all(
        self, clips: Tensor, weights: Modulation, options: Options, groups: list[Group]
    ) -> Tensor:
        y: Tensor | None = None
        for rows, active in groups:
            which: Any = slice(rows[0], rows[-1] + 1)
            if rows != list(range(rows[0], rows[-1] + 1)):
                which = torch.tensor(rows, device=clips.device)
            own = Modulation(*(v[which] for v in weights))
            part = self._modulate(clips[which], own, options, active)
            if y is None:
                y = empty_clips((len(clips), *part.shape[1:]), part)
            y[which] = part
        assert y is not None
        return y

    def _modulate(
        self,
        clips: Tensor,
        weights: Modulation,
        options: Options,
        active: tuple[list[int], list[int]],
    ) -> Tensor:
        """Convolve and mix the options that are on for any of these clips."""
        conv = self.conv
        if sum(map(len, active)) < sum(map(len, options)):
            pairs = zip(options, active, strict=True)
            options = Options(*(tuple(which[i] for i in a) for which, a in pairs))
            weights = Modulation(*(v[:, a] for v, a in zip(weights, active, strict=True)))
        if self.packed is None or not self.packed.serves(clips):
            y = conv.modulate(clips, weights, options)
        else:
            z = self.packed(clips, options.channel[0], options.temporal[0])
            parts = conv.channel_options, conv.temporal_options
            frames = conv.output_frames(clips.shape[2])
            y = conv.mix(z, shares(weights, conv.normalised), options, *parts, frames)
        innermost = layout(clips) == 'channels last'  # and so is what other layers get
        return y.contiguous(memory_format=torch.channels_last_3d) if innermost else y


Rows = Sequence[tuple[list[float], list[float]]]
"""Weights of channel and temporal options of each clip, on the host."""


def decide(
    conv: Any, clips: Tensor, options: Options, forced: Tensor | None
) -> tuple[Modulation, Rows]:
    """Weights of the options that clips (N, C, T, H, W) leave a dynamic layer, also on the host.

    Raises:
        FloatingPointError: If weights are not finite.
        ValueError: If all options of a clip are off.
    """
    if forced is None:
        weights = conv.weigh(clips, options)
    else:
        weights = forced_weights(forced, len(clips), options, conv.weight.dtype)
    rows = list(zip(*(v.tolist() for v in weights), strict=True))
    for row in rows:
        for v in row:
            if not all(map(math.isfinite, v)):
                raise FloatingPointError(f'the weights of the gate are not finite: {v}')
            if max(v) <= 0:
                raise ValueError(f'expected an option that is on for every clip, got weights {v}')
    return weights, rows


@functools.lru_cache(maxsize=256)
def _cost(
    constants: LayerConstants, options: Options, number: int, frames: int, area: int
) -> LayerCost:
    """Cost of a layer with a number of temporal options, for maps of a size."""
    return layer_cost(constants, options, kept(frames, number), area)


def divide(rows: Rows) -> list[Group]:
    """Group clips by the dearest options that are on."""
    groups: dict[tuple[int, int], Group] = {}
    for n, row in enumerate(rows):
        active = [[i for i, w in enumerate(v) if w > 0] for v in row]
        group = groups.setdefault((active[0][0], active[1][0]), Group([], ([], [])))
        group.rows.append(n)
        for own, found in zip(group.active, active, strict=True):
            own[:] = sorted({*own, *found})
    return list(groups.values())


def in_runs(groups: list[Group]) -> list[Group]:
    """Groups of clips side by side: gathering one would copy it, where a run of its own reads all
    weights again."""
    of = {row: group for group in groups for row in group.rows}
    runs: list[Group] = []
    for row in sorted(of):
        if runs and of[row].active is runs[-1].active:
            runs[-1].rows.append(row)
        else:
            runs.append(Group([row], of[row].active))
    return runs
