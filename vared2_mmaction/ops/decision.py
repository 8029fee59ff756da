# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What layers decided for every clip, what that costs, and how it leaves the network.

Stock blocks pass one tensor from layer to layer, so a layer's decision cannot be among its return
values there. :func:`collect` opens a scope, the forward of one backbone, into which the layers
``report``; the backbone returns what the scope has gathered. Nothing outlives the call, scopes
of different threads do not meet, and outside a scope (gradient checkpointing running a block
again) a report goes nowhere.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .answer import Answer, Weights, active_options

COLUMNS = ('executed', 'static', 'overhead', 'p_c', 'p_t')
Charges = Sequence[Sequence[float]]
"""What one layer charges each clip: its ``COLUMNS``."""


class LayerCost(NamedTuple):
    """Multiply-adds of one layer for one clip, as far as they do not depend on the decision."""

    unit: int
    """One output channel of one output frame of the convolution."""
    channels: tuple[int, ...]
    """Channels that each channel option computes."""
    frames: tuple[int, ...]
    """Frames that each temporal option computes."""
    channel_operation: tuple[int, ...]
    """Cheap operation of each channel option, for one computed frame."""
    temporal_operation: tuple[int, ...]
    """Cheap operation of each temporal option."""
    gate: int
    """The gate."""


class LayerConstants(NamedTuple):
    """What of a layer's cost depends on no input."""

    kernel: int
    """Multiply-adds of one output element of the convolution."""
    channels: tuple[int, ...]
    """Channels that each channel option computes, the first all of them."""
    macs_per_element: tuple[int, int]
    """Multiply-adds of the cheap operations that rebuild channels and frames."""
    gate: int
    """Multiply-adds of the gate."""


@functools.lru_cache(maxsize=4096)
def layer_cost(constants: LayerConstants, frames: tuple[int, ...], area: int) -> LayerCost:
    """Cost of a layer.

    Args:
        constants: What depends on no input.
        frames: Frames that each temporal option computes, the first all of them.
        area: Positions of an output frame.
    """
    channel, temporal = (area * macs for macs in constants.macs_per_element)
    channels = constants.channels
    return LayerCost(
        unit=constants.kernel * area,
        channels=channels,
        frames=frames,
        channel_operation=tuple((channels[0] - k) * channel for k in channels),
        temporal_operation=tuple((frames[0] - t) * channels[0] * temporal for t in frames),
        gate=constants.gate,
    )


class LayerDecision(NamedTuple):
    """Decision of one layer for N clips."""

    answer: Answer
    cost: LayerCost
    trained: tuple[nn.Module, ...] = ()
    """Gates and cheap operations all of whose parameters get a gradient from this run."""


class ChargedDecision(NamedTuple):
    """Decision of one layer for N clips that was charged where it was made."""

    charges: Charges | Tensor
    """What is charged; (N, 5) in float64 if it never came to the host."""


@dataclass
class Decisions:
    """All that the layers of a backbone reported in one forward."""

    layers: dict[str, list[LayerDecision | ChargedDecision]] = field(default_factory=dict)
    fixed: int = 0
    """Multiply-adds of the convolutions that are not dynamic, for the whole batch."""


_scope: ContextVar[Decisions | None] = ContextVar('vared2_decisions', default=None)


@contextmanager
def collect() -> Iterator[Decisions]:
    """Gather what layers report while the context is open."""
    decisions = Decisions()
    token = _scope.set(decisions)
    try:
        yield decisions
    finally:
        _scope.reset(token)


def report(layer: str, decision: LayerDecision | ChargedDecision) -> None:
    """Hand a layer's decision to the open scope, if there is one."""
    if (scope := _scope.get()) is not None:
        scope.layers.setdefault(layer, []).append(decision)


def report_fixed(macs: int) -> None:
    """Add the cost of a convolution that decides nothing to the open scope."""
    if (scope := _scope.get()) is not None:
        scope.fixed += macs


def charge(decisions: Sequence[LayerDecision], device: torch.device | None = None) -> Tensor:
    """Charge all layers at once.

    Args:
        decisions: Decisions of L layers for the same N clips.
        device: Where the answer is wanted.

    Returns:
        (N, L, 5) in float64; the columns are ``COLUMNS``, costs in multiply-adds a clip. The
        gradient of the executed ones reaches the gates straight through.
    """
    clips = len(decisions[0].answer.weights)
    rows = [charge_on_host(d) for d in decisions]
    table = torch.tensor(rows, dtype=torch.float64, device=device)
    table = table.view(len(decisions), clips, len(COLUMNS)).transpose(0, 1)
    return table + gradient_of_charge(decisions, device) if torch.is_grad_enabled() else table


def charge_on_host(decision: LayerDecision | ChargedDecision) -> Charges:
    """What one layer charges each clip, which is known on the host."""
    if isinstance(decision, ChargedDecision):
        assert not isinstance(decision.charges, Tensor)
        return decision.charges
    return [_charge(decision.cost, weights) for weights in decision.answer.weights]


def gradient_of_charge(
    decisions: Sequence[LayerDecision], device: torch.device | None = None
) -> Tensor:
    """Zeros of the shape of :func:`charge`, with the gradient of what is executed."""
    weights = [d.answer.modulation for d in decisions]
    channel, temporal = (_padded(list(dimension)) for dimension in zip(*weights, strict=True))
    units, channels, frames = _sizes(tuple(d.cost for d in decisions), device)
    executed = straight_through(channel, channels) * straight_through(temporal, frames) * units
    return F.pad((executed - executed.detach())[..., None], (0, len(COLUMNS) - 1))


def _charge(cost: LayerCost, weights: Weights) -> tuple[float, ...]:
    """Columns of one layer for one clip."""
    channel, temporal = map(active_options, weights)
    frames = cost.frames[temporal[0]]
    return (
        cost.unit * cost.channels[channel[0]] * frames,
        cost.unit * cost.channels[0] * cost.frames[0],
        sum(cost.channel_operation[i] for i in channel) * frames
        + sum(cost.temporal_operation[i] for i in temporal)
        + cost.gate,
        channel[0],
        temporal[0],
    )


@functools.lru_cache(maxsize=64)
def _sizes(costs: tuple[LayerCost, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Unit of L layers, (L,), and what their options compute, (L, options), in float64."""

    def table(rows: Sequence[Sequence[int]]) -> Tensor:
        width = max(map(len, rows))
        padded = [[*row, *[0] * (width - len(row))] for row in rows]
        return torch.tensor(padded, dtype=torch.float64, device=device)

    with torch.inference_mode(False):  # the tables serve training as well
        units = table([[c.unit] for c in costs])[:, 0]
        return units, table([c.channels for c in costs]), table([c.frames for c in costs])


def straight_through(v: Tensor, sizes: Tensor) -> Tensor:
    """Size of the dearest option that is on, with a gradient to all weights.

    With a_i = 1[V_i > 0], whose gradient is that of V_i, this is
    sum_i sizes_i a_i prod_{k<i} (1 - a_k).

    Args:
        v: Weights of the options, (N, L, options), zeros behind them included.
        sizes: What each option computes, (L, options).

    Returns:
        Sizes, (N, L), exact in float64.
    """
    v = v.double()
    on = (v > 0).double() + (v - v.detach())
    total, all_off = torch.zeros_like(on[..., 0]), torch.ones_like(on[..., 0])
    for i in range(sizes.shape[-1]):
        total = total + sizes[..., i] * on[..., i] * all_off
        all_off = all_off * (1 - on[..., i])
    return total


def _padded(weights: list[Tensor]) -> Tensor:
    """Weights of different numbers of options, (N, options) each, as (N, layers, most options) in
    float64, options that a layer lacks being off."""
    most = max(v.shape[1] for v in weights)
    options = [v if v.shape[1] == most else F.pad(v, (0, most - v.shape[1])) for v in weights]
    return torch.stack(options, 1).double()
