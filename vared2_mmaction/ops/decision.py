# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What layers decided for every clip, what that costs, and how it leaves the network.

Stock blocks pass one tensor from layer to layer, so a layer's decision cannot be among its return
values there. :func:`collect` opens a scope, the forward of one backbone, into which the layers
``report``; the backbone returns what the scope has gathered. Nothing outlives the call, scopes
of different threads do not meet, and outside a scope (gradient checkpointing running a block
again) a report goes nowhere.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

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
    costs = [d.cost for d in decisions]
    channel, temporal = (_padded([d.modulation[i].T for d in decisions]) for i in range(2))

    def table(sizes: Sequence[Sequence[int]]) -> Tensor:
        return _padded([torch.tensor(row, dtype=torch.float64) for row in sizes]).to(channel.device)

    units = channel.new_tensor([c.unit for c in costs])
    gates = channel.new_tensor([c.gate for c in costs])
    computed = straight_through(temporal, table([c.frames for c in costs]))
    executed = straight_through(channel, table([c.channels for c in costs])) * computed * units
    static = units * channel.new_tensor([c.channels[0] * c.frames[0] for c in costs])
    cheap = _open_sum(channel, table([c.channel_operation for c in costs])) * computed.detach()
    cheap = cheap + _open_sum(temporal, table([c.temporal_operation for c in costs]))
    policy = [(v > 0).to(torch.uint8).argmax(-1).double() for v in (channel, temporal)]
    return torch.stack((executed, static.expand_as(executed), cheap + gates, *policy), -1)


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


def _open_sum(v: Tensor, sizes: Tensor) -> Tensor:
    """Sum of the sizes of all options that are on, (N, L), without gradient."""
    return ((v.detach() > 0).double() * sizes).sum(-1)


def _padded(rows: list[Tensor]) -> Tensor:
    """Stack rows of different numbers of options (options, ...) to (..., rows, options)."""
    stacked = pad_sequence([row.double() for row in rows], batch_first=True)
    return stacked if stacked.dim() == 2 else stacked.permute(2, 0, 1)
