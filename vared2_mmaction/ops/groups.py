# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Which clips of a batch are executed together."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .answer import Weights, active_options
from .forms import empty_clips


class Group(NamedTuple):
    """Clips whose dearest options are the same, and the options that are on for any."""

    rows: list[int]
    channel: list[int]
    temporal: list[int]


def group_by_policy(weights: Sequence[Weights]) -> list[Group]:
    """Group clips by their dearest options.

    Args:
        weights: The weights of each of N clips.

    Raises:
        FloatingPointError: If weights are not finite.
        ValueError: If all options of a clip are off.
    """
    members: dict[tuple[int, int], tuple[list[int], set[int], set[int]]] = {}
    for row, v in enumerate(weights):
        channel, temporal = map(active_options, v)
        if not math.isfinite(sum(map(sum, v))):
            raise FloatingPointError(f'the weights of the gate are not finite: {v}')
        if not channel or not temporal:
            raise ValueError(f'the gate leaves no option on: expected a weight above 0, got {v}')
        policy = (channel[0], temporal[0])
        rows, all_channel, all_temporal = members.setdefault(policy, ([], set(), set()))
        rows.append(row)
        all_channel.update(channel)
        all_temporal.update(temporal)
    if not members:  # no clips: any policy will do
        return [Group([], [0], [0])]
    return [Group(rows, sorted(c), sorted(t)) for rows, c, t in members.values()]


def consecutive(groups: list[Group]) -> list[Group]:
    """Cut groups into runs of neighbouring clips, in the order of the clips.

    A run is a view of the batch, where a group's clips have to be gathered.
    """
    runs = [group._replace(rows=list(run)) for group in groups for run in _runs(group.rows)]
    return sorted(runs, key=lambda run: run.rows)


def _runs(rows: list[int]) -> Iterator[range]:
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end] != rows[end - 1] + 1:
            yield range(rows[start], rows[end - 1] + 1)
            start = end


def take(x: Tensor, rows: list[int]) -> Tensor:
    """Rows of a tensor; a view where they are neighbours."""
    if len(rows) == len(x):
        return x
    if _neighbours(rows):  # rows rise
        return x[rows[0] : rows[-1] + 1]
    return x[torch.tensor(rows, device=x.device)]


def divide(x: Tensor, rows: Sequence[list[int]]) -> Iterable[Tensor]:
    """The rows of each group; together all rows.

    With gradients all are brought into order at once: the backward pass of a part of its own would
    write a gradient of the whole.
    """
    if not torch.is_grad_enabled():
        return (take(x, group) for group in rows)
    order = [row for group in rows for row in group]
    if order != sorted(order):
        x = _Permute.apply(x, torch.tensor(order, device=x.device))
    return x.split([len(group) for group in rows])


def assemble(parts: Iterable[Tensor], rows: Sequence[list[int]]) -> Tensor:
    """The inverse of :func:`divide`: clips in their order again.

    Args:
        parts: Clips (n, C, T, H, W) of each group.
        rows: Where they belong; together all rows.
    """
    if torch.is_grad_enabled():
        order = [row for group in rows for row in group]
        y = torch.cat(tuple(parts))
        if order == sorted(order):
            return y
        return _Permute.apply(y, torch.tensor(order, device=y.device).argsort())
    out = None
    for part, group in zip(parts, rows, strict=True):  # each is freed before the next one is made
        if out is None:
            out = empty_clips((sum(map(len, rows)), *part.shape[1:]), part)
        if _neighbours(group):
            out[group[0] : group[-1] + 1] = part
        else:
            out[torch.tensor(group, device=part.device)] = part
    assert out is not None
    return out


class _Permute(torch.autograd.Function):
    """Rows in another order, each once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return x[order]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (order,) = ctx.saved_tensors
        return _Permute.apply(grad, order.argsort()), None


def _neighbours(rows: list[int]) -> bool:
    return not rows or rows[-1] - rows[0] + 1 == len(rows)
