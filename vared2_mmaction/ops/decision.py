# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What a layer decided for every clip, what that costs, and how it leaves the network.

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

from .gate import Modulation


class LayerDecision(NamedTuple):
    """Decision of one layer for N clips. Costs are multiply-adds a clip, in float64."""

    policy: Tensor
    """(N, 2) whole numbers: p_c and p_t, the dearest option that is on."""
    executed: Tensor
    """(N,) cost of the convolution as executed; its gradient reaches the gate."""
    overhead: Tensor
    """(N,) cost of the gate and the cheap operations."""
    static: int
    """Cost of the static convolution."""


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


def policy(modulation: Modulation) -> Tensor:
    """Dearest option that is on, (N, 2): p_c and p_t."""
    return torch.stack([(v > 0).to(torch.uint8).argmax(1) for v in modulation], 1)


def straight_through(v: Tensor, sizes: Sequence[int]) -> Tensor:
    """Size of the dearest option that is on, with a gradient to all weights.

    With a_i = 1[V_i > 0], whose gradient is that of V_i, this is
    sum_i sizes_i a_i prod_{k<i} (1 - a_k).

    Args:
        v: Weights of the options, (N, options).
        sizes: What each option computes.

    Returns:
        Sizes, (N,), exact in float64.
    """
    v = v.double()
    on = (v > 0).double() + (v - v.detach())
    total, all_off = torch.zeros_like(on[:, 0]), torch.ones_like(on[:, 0])
    for i, size in enumerate(sizes):
        total = total + size * on[:, i] * all_off
        all_off = all_off * (1 - on[:, i])
    return total


def open_sum(v: Tensor, sizes: Sequence[int]) -> Tensor:
    """Sum of the sizes of all options that are on, (N,), without gradient."""
    return ((v.detach() > 0).double() * v.new_tensor(sizes, dtype=torch.float64)).sum(1)
