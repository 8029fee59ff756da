# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Executes the definition group by group: clips whose dearest options are the same compute no more
than these."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..layout import empty_clips
from ..ops import Modulation, Options
from ..ops.conv import forced_weights
from ..ops.cost import Decision, LayerCost
from ..ops.mixing import Tables, mix, shares, tables_of
from .base import Charges
from .cpu.packed import PackedConvolution
from .records import is_dynamic

Active = tuple[list[int], list[int]]
"""Options of each dimension that are on for any of some clips, rising, counted among those in use.
"""


class Group(NamedTuple):
    """Clips whose dearest options are the same."""

    rows: list[int]
    active: Active


class Eager:
    """Executor of every convolution, by PyTorch's operations. What depends on the length of clips
    and on options alone is made once and kept.

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
        self._options: dict[int, tuple[Options, tuple[int, ...]]] = {}
        self._tables: dict[tuple[Options, int], Tables] = {}

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
        y, packed = None, self.packed
        if packed is not None and x.dim() == packed.record.rank + 2:
            y = packed(x if x.dim() == 5 else x.unsqueeze(2))
        if y is None:
            y = self.conv(x)
        elif x.dim() == 4:
            y = y.squeeze(2)
        return y, y.numel() * math.prod(self.conv.weight.shape[1:])

    def _execute_dynamic(self, x: Tensor, forced: Tensor | None) -> tuple[Tensor, Decision]:
        conv = self.conv
        clips = conv.to_clips(x)
        length = clips.shape[2]
        if (known := self._options.get(length)) is None:
            known = self._options[length] = conv.options_of(length)
        options, frames = known
        if forced is None:
            weights = conv.weigh(clips, options, len(frames))
        else:
            weights = forced_weights(forced, len(clips), options, conv.weight.dtype)
        groups = divide(weights)
        if len(groups) <= 1:  # none, if there is no clip
            active: Any = groups[0].active if groups else options
            y = self._modulate(clips, weights, options, frames[0], active)
        else:
            if not torch.is_grad_enabled() and clips[0].numel() > conv.weight.numel():
                groups = in_runs(groups)
            y = self._modulate_all(clips, weights, options, frames[0], groups)
        cost = LayerCost(conv.constants, options, frames, y.shape[-2] * y.shape[-1])
        return conv.from_clips(y), Decision(weights, cost)

    def _modulate_all(
        self, clips: Tensor, weights: Modulation, options: Options, frames: int, groups: list[Group]
    ) -> Tensor:
        y: Tensor | None = None
        for rows, active in groups:
            which: Any = slice(rows[0], rows[-1] + 1)
            if rows != list(range(rows[0], rows[-1] + 1)):
                which = torch.tensor(rows, device=clips.device)
            own = Modulation(weights.channel[which], weights.temporal[which])
            part = self._modulate(clips[which], own, options, frames, active)
            if y is None:
                y = empty_clips((len(clips), *part.shape[1:]), part)
            y[which] = part
        assert y is not None
        return y

    def _modulate(
        self, clips: Tensor, weights: Modulation, options: Options, frames: int, active: Active
    ) -> Tensor:
        """Convolve and mix the options that are on for any of these clips."""
        conv, z = self.conv, None
        if sum(map(len, active)) < sum(map(len, options)):
            pairs = zip(options, active, strict=True)
            options = Options(*(tuple(which[i] for i in a) for which, a in pairs))
            weights = Modulation(*(v[:, a] for v, a in zip(weights, active, strict=True)))
        if self.packed is not None:
            z = self.packed(clips, options.channel[0], options.temporal[0])
        if z is None:
            y = conv.modulate(clips, weights, options)
        else:
            parts, known = (conv.channel_options, conv.temporal_options), (options, frames)
            if (tables := self._tables.get(known)) is None:
                with torch.inference_mode(False), torch.no_grad():  # they serve all later calls
                    tables = self._tables[known] = tables_of(options, *parts, frames)
            y = mix(z, shares(weights), options, *parts, frames, tables)
        if clips.stride(1) == 1 and clips.shape[1] > 1:  # innermost is what other layers get
            y = y.contiguous(memory_format=torch.channels_last_3d)
        return y


def divide(weights: Modulation) -> list[Group]:
    """Group clips by the dearest options that are on, on the host.

    Raises:
        FloatingPointError: If weights are not finite.
        ValueError: If all options of a clip are off.
    """
    groups: dict[tuple[int, int], Group] = {}
    rows = zip(weights.channel.tolist(), weights.temporal.tolist(), strict=True)
    for n, row in enumerate(rows):
        found = []
        for v in row:
            if not all(map(math.isfinite, v)):
                raise FloatingPointError(f'the weights of the gate are not finite: {v}')
            if max(v) <= 0:
                raise ValueError(f'expected an option that is on for every clip, got weights {v}')
            found.append([i for i, w in enumerate(v) if w > 0])
        group = groups.setdefault((found[0][0], found[1][0]), Group([], ([], [])))
        group.rows.append(n)
        for own, more in zip(group.active, found, strict=True):
            own[:] = sorted({*own, *more})
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
