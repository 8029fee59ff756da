# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What layers decided for every clip, what that costs, and how it leaves the network.

Stock blocks pass one tensor from layer to layer, so a layer's decision cannot be among its return
values there. :func:`collect` opens a scope, the forward of one backbone, into which the layers
``report``; the backbone returns what the scope has gathered. Nothing outlives the call, scopes
of different threads do not meet, and outside a scope (gradient checkpointing running a block
again) a report goes nowhere.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .gate import Modulation

COLUMNS = ('executed', 'static', 'overhead', 'p_c', 'p_t')


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
    saturation: float | None = None
    """See :func:`~vared2_mmaction.ops.blend.sharing`."""


@functools.lru_cache(maxsize=4096)
def layer_cost(
    kernel: int,
    channels: tuple[int, ...],
    frames: tuple[int, ...],
    area: int,
    macs_per_element: tuple[int, int],
    gate: int,
    saturation: float | None,
) -> LayerCost:
    """Cost of a layer.

    Args:
        kernel: Multiply-adds of one output element of the convolution.
        channels: Channels that each channel option computes, the first all of them.
        frames: Frames that each temporal option computes, the first all of them.
        area: Positions of an output frame.
        macs_per_element: Of the cheap operations that rebuild channels and frames.
        gate: Multiply-adds of the gate.
        saturation: See :class:`LayerCost`.
    """
    channel, temporal = (area * macs for macs in macs_per_element)
    return LayerCost(
        unit=kernel * area,
        channels=channels,
        frames=frames,
        channel_operation=tuple((channels[0] - k) * channel for k in channels),
        temporal_operation=tuple((frames[0] - t) * channels[0] * temporal for t in frames),
        gate=gate,
        saturation=saturation,
    )


class LayerDecision(NamedTuple):
    """Decision of one layer for N clips."""

    modulation: Modulation
    cost: LayerCost


@dataclass
class Decisions:
    """All that the layers of a backbone reported in one forward."""

    layers: dict[str, list[LayerDecision]] = field(default_factory=dict)
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


def report(layer: str, decision: LayerDecision) -> None:
    """Hand a layer's decision to the open scope, if there is one."""
    if (scope := _scope.get()) is not None:
        scope.layers.setdefault(layer, []).append(decision)


def report_fixed(macs: int) -> None:
    """Add the cost of a convolution that decides nothing to the open scope."""
    if (scope := _scope.get()) is not None:
        scope.fixed += macs


def charge(decisions: Sequence[LayerDecision]) -> Tensor:
    """Charge all layers at once.

    Args:
        decisions: Decisions of L layers for the same N clips.

    Returns:
        (N, L, 5) in float64; the columns are ``COLUMNS``, costs in multiply-adds a clip. The
        gradient of the executed ones reaches the gates straight through.
    """
    channel, temporal = (_padded([d.modulation[i] for d in decisions]) for i in range(2))
    costs = _tables(tuple(d.cost for d in decisions), channel.device)
    units, static, gates, saturations = costs['layers']
    computed = straight_through(temporal, costs['frames'])
    executed = straight_through(channel, costs['channels']) * computed * units
    cheap = _shared_sum(channel, saturations, costs['channel_operation']) * computed.detach()
    cheap = cheap + _shared_sum(temporal, saturations, costs['temporal_operation'])
    policy = [(v > 0).to(torch.uint8).argmax(-1).double() for v in (channel, temporal)]
    return torch.stack((executed, static.expand_as(executed), cheap + gates, *policy), -1)


@functools.lru_cache(maxsize=64)
def _tables(costs: tuple[LayerCost, ...], device: torch.device) -> dict[str, Tensor]:
    """Costs of L layers in float64: unit, static, gate and saturation, (4, L), as 'layers', and
    what options cost, (L, options), by name."""

    def table(rows: Sequence[Sequence[float]]) -> Tensor:
        width = max(map(len, rows))
        padded = [[*row, *[0.0] * (width - len(row))] for row in rows]
        return torch.tensor(padded, dtype=torch.float64, device=device)

    static = [c.unit * c.channels[0] * c.frames[0] for c in costs]
    saturation = [math.inf if c.saturation is None else c.saturation for c in costs]
    layers = table([[c.unit for c in costs], static, [c.gate for c in costs], saturation])
    options = ('channels', 'frames', 'channel_operation', 'temporal_operation')
    return {'layers': layers, **{k: table([getattr(c, k) for c in costs]) for k in options}}


def straight_through(v: Tensor, sizes: Tensor) -> Tensor:
    """Size of the dearest option that is on, with a gradient to all weights.

    With a_i = 1[V_i > 0], whose gradient is that of V_i, this is
    sum_i sizes_i a_i prod_{k<i} (1 - a_k).

    Args:
        v: Weights of the options, (N, L, options).
        sizes: What each option computes, (L, options).

    Returns:
        Sizes, (N, L), exact in float64.
    """
    v = v.double()
    on = (v > 0).double() + (v - v.detach())
    total, all_off = torch.zeros_like(on[..., 0]), torch.ones_like(on[..., 0])
    for i in range(v.shape[-1]):
        total = total + sizes[..., i] * on[..., i] * all_off
        all_off = all_off * (1 - on[..., i])
    return total


def _shared_sum(v: Tensor, saturations: Tensor, sizes: Tensor) -> Tensor:
    """Sum of the sizes of all options that are on and have a share, (N, L), without gradient."""
    v = v.detach()
    dearer = (v >= saturations[:, None]).double().cumsum(-1).roll(1, -1)
    dearer[..., 0] = 0
    return ((v > 0) * (dearer == 0) * sizes).sum(-1)


def _padded(weights: list[Tensor]) -> Tensor:
    """Weights of different numbers of options, (N, options) each, as (N, layers, most options) in
    float64, options that a layer lacks being off."""
    most = max(v.shape[1] for v in weights)
    options = [v if v.shape[1] == most else F.pad(v, (0, most - v.shape[1])) for v in weights]
    return torch.stack(options, 1).double()
