# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What layers decided for every clip, and what that costs."""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .gate import Modulation
from .options import Options

COLUMNS = ('executed', 'static', 'overhead', 'p_c', 'p_t')
_KNOWN: dict[tuple, tuple[Tensor, ...]] = {}  # tables, for good: CUDA graphs read them


class LayerConstants(NamedTuple):
    """What of a layer's cost depends on no input."""

    kernel: int
    """Multiply-adds of one output element of the convolution."""
    channels: tuple[int, ...]
    """Channels that each channel option computes, the first all of them."""
    gate: int
    """Multiply-adds of the gate."""


class LayerCost(NamedTuple):
    """What of one layer's cost for one clip does not depend on the decision."""

    constants: LayerConstants
    options: Options
    """Options that the weights of a decision are of."""
    frames: tuple[int, ...]
    """Frames that each temporal option computes, in use or not, the first all of them."""
    area: int
    """Positions of an output frame."""

    def whole(self) -> tuple[int, int, int]:
        """Multiply-adds of one output channel of one output frame of the convolution, of the static
        convolution, and of the gate, which nobody asks where there is nothing to choose."""
        constants = self.constants
        unit = constants.kernel * self.area
        gate = constants.gate if max(map(len, self.options)) > 1 else 0
        return unit, unit * constants.channels[0] * self.frames[0], gate

    def computed(self) -> tuple[list[int], list[int]]:
        """Channels and frames that each of the options computes."""
        channels, (channel, temporal) = self.constants.channels, self.options
        return [channels[i] for i in channel], [self.frames[j] for j in temporal]

    def operations(self) -> tuple[list[int], list[int]]:
        """Multiply-adds of each option's cheap operation, one for each element that it rebuilds:
        for one computed frame, and for all."""
        every, frames = self.constants.channels[0], self.frames[0]
        channels, computed = self.computed()
        return (
            [(every - k) * self.area for k in channels],
            [(frames - t) * every * self.area for t in computed],
        )


class Decision(NamedTuple):
    """Decision of one layer for N clips."""

    weights: Modulation
    """Weights of the options in use; zero is off."""
    cost: LayerCost


def charge(decisions: Sequence[Decision]) -> Tensor:
    """Charge all layers at once, on the device where they decided.

    Args:
        decisions: Decisions of L layers for the same N clips.

    Returns:
        (N, L, 5) in float64; the columns are ``COLUMNS``, costs in multiply-adds a clip. The
        gradient of the executed ones reaches the gates straight through.
    """
    weights = [v for decision in decisions for v in decision.weights]
    costs = tuple(decision.cost for decision in decisions)
    tables, whole, places = _tables(costs, weights[0].device)
    # Those of all layers side by side, and behind them a zero for each option that a layer lacks.
    every = torch.cat((*weights, weights[0].new_zeros(len(weights[0]), 1)), 1).double()
    channel, temporal = every.index_select(1, places).unflatten(1, tables.shape[1:]).unbind(1)
    sizes, operations, numbers = tables.unbind(0)  # each of channel and of temporal options
    unit, static, gate = whole.unbind(0)
    dearest = dearest_option(channel), dearest_option(temporal)
    channels, frames = ((d * s).sum(-1) for d, s in zip(dearest, sizes, strict=True))
    policy = [(d * n).sum(-1) for d, n in zip(dearest, numbers, strict=True)]
    rebuilt = [((v > 0) * o).sum(-1) for v, o in zip((channel, temporal), operations, strict=True)]
    executed = unit * channels * frames
    others = static.expand_as(executed), rebuilt[0] * frames + rebuilt[1] + gate, *policy
    return torch.stack((executed, *(column.detach() for column in others)), -1)


def dearest_option(v: Tensor) -> Tensor:
    """Which option is the dearest that is on, with a gradient to all weights.

    With a_i = 1[V_i > 0], whose gradient is that of V_i, option i is
    a_i prod_{k<i} (1 - a_k).

    Args:
        v: Weights of the options, (..., options) in float64, zeros behind them included.

    Returns:
        One for that option and zero for the others, of the shape of v.
    """
    on = (v > 0).double() + (v - v.detach())
    options, all_off = [], torch.ones_like(on[..., 0])
    for a in on.unbind(-1):
        options.append(a * all_off)
        all_off = all_off * (1 - a)
    return torch.stack(options, -1)


@torch.compiler.assume_constant_result
def _tables(costs: tuple[LayerCost, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Costs of L layers as tensors in float64, of which compiled graphs keep their own.

    Returns:
        What options compute, what their cheap operations cost, and their numbers, for channel and
        for temporal options, (3, 2, L, options), filled up with zeros; unit, static cost and gate
        of each layer, (3, L); and where the weight of each option in the first table stands among
        those of all layers, channel options of a layer before its temporal ones, and then a zero.
    """
    if (tables := _KNOWN.get((costs, device))) is None:
        tables = _tables_on(costs, device)
        if type(tables[0]) is Tensor:  # torch.export makes tensors that hold nothing
            _KNOWN[costs, device] = tables
    return tables


def _tables_on(costs: tuple[LayerCost, ...], device: torch.device) -> tuple[Tensor, ...]:
    sizes = [len(options) for cost in costs for options in cost.options]

    def filled(rows: Iterable[Sequence[int]], behind: int = 0) -> list[list[int]]:
        return [[*row, *[behind] * (max(sizes) - len(row))] for row in rows]

    kinds = (
        [cost.computed() for cost in costs],
        [cost.operations() for cost in costs],
        [cost.options for cost in costs],
    )
    table = [[filled(rows) for rows in zip(*kind, strict=True)] for kind in kinds]
    whole = list(zip(*(cost.whole() for cost in costs), strict=True))
    starts = [0, *itertools.accumulate(sizes)]
    rows = [range(start, stop) for start, stop in itertools.pairwise(starts)]
    places = filled((*rows[::2], *rows[1::2]), behind=starts[-1])
    with torch.inference_mode(False):  # the tables serve training as well
        return (
            torch.tensor(table, dtype=torch.float64, device=device),
            torch.tensor(whole, dtype=torch.float64, device=device),
            torch.tensor(places, device=device).flatten(),
        )
