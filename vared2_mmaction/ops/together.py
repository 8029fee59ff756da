# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Gates of the same input evaluated together, with gradients.

A gate on its own is a few dozen operations so small that the host takes longer for them than a GPU.
Here those of several gates are one each, on their concatenated parameters, in both directions.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .gate import SoftModulationGate, full_precision

_aten = torch.ops.aten


def weigh(gates: Sequence[SoftModulationGate], described: Tensor) -> Tensor:
    """What :meth:`SoftModulationGate.weigh` returns for each gate; statistics are kept as there.

    Args:
        gates: L gates.
        described: What they see of N clips, (N, C) or with motion (N, 2 C), without a gradient.

    Returns:
        (N, L, 2, width), as wide as the widest gate asks for.
    """
    parts = [(gate.fc1, gate.bn, gate.fc2) for gate in gates]
    kinds = {_kind(*of_gate) for of_gate in parts}
    kind = next(iter(kinds)) if {type(gate) for gate in gates} == {SoftModulationGate} else None
    # The norm's backward pass asks for clips.
    if kind is None or len(kinds) > 1 or not len(described):
        width = max(gate.width for gate in gates)
        return torch.stack([gate.weigh(described, width) for gate in gates], 1)
    of = _Stack(
        tuple((gate.channel_options, gate.temporal_options) for gate in gates),
        kind.hidden,
        kind.training and len(described) > 1,  # one clip has no batch statistics
        (kind.momentum, kind.eps),
    )
    norms: list[Any] = [norm for _, norm, _ in parts]
    running = [norm.running_mean for norm in norms], [norm.running_var for norm in norms]
    v, *statistics = _Weigh.apply(described, of, *map(torch.cat, running), *_parameters(parts))
    if of.batch:
        found = (own for each in statistics for own in each.split([of.hidden] * len(norms)))
        torch._foreach_copy_([*running[0], *running[1]], list(found))
        torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)
    return v


class _Kind(NamedTuple):
    """What gates have in common that are evaluated together."""

    hidden: int
    dtype: torch.dtype
    training: bool
    momentum: float
    eps: float


def _kind(first: nn.Module, norm: nn.Module, second: nn.Module) -> _Kind | None:
    """None for parts of a gate that may do something else than plain ones."""
    parts = first, norm, second
    if type(norm) is not nn.BatchNorm1d or type(first) is not nn.Linear:
        return None
    if type(second) is not nn.Linear or first.bias is None or second.bias is None:
        return None
    if any(part._forward_hooks or part._forward_pre_hooks for part in parts):
        return None
    if norm.momentum is None or norm.running_mean is None or norm.weight is None:
        return None
    return _Kind(first.out_features, first.weight.dtype, norm.training, norm.momentum, norm.eps)


def _parameters(parts: Sequence[tuple[nn.Module, ...]]) -> Iterator[Any]:
    """Weights and then biases of all gates, of the first layers, the norms and the second ones."""
    for of_part in zip(*parts, strict=True):
        yield from (part.weight for part in of_part)
        yield from (part.bias for part in of_part)


class _Stack(NamedTuple):
    """How gates are put together."""

    numbers: tuple[tuple[int, int], ...]
    """Channel and temporal options of each."""
    hidden: int
    """Width of their hidden layers."""
    batch: bool
    """Whether the statistics are those of the batch, or the running ones."""
    norm: tuple[float, float]
    """Momentum and epsilon."""

    @property
    def width(self) -> int:
        return max(map(max, self.numbers))

    @property
    def sizes(self) -> tuple[list[int], ...]:
        """Rows that each gate has of parameters of each kind."""
        first = [self.hidden] * len(self.numbers)
        second = [sum(pair) for pair in self.numbers]
        return (first,) * 4 + (second,) * 2


class _Weigh(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, described: Tensor, of: _Stack, mean: Tensor, variance: Tensor, *given: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        gates, width = len(of.numbers), of.width
        first, shift, gain, lift, second, beta = (
            torch.cat(given[i : i + gates]) for i in range(0, len(given), gates)
        )
        if (places := _places(of.numbers, described.device)) is not None:
            second, beta = (
                torch.cat((p, torch.zeros_like(p[:1])))[places.rows] for p in (second, beta)
            )
        second = second.view(gates, 2 * width, of.hidden)
        before = torch.addmm(shift, described, first.T)
        after, *found = _aten.native_batch_norm(
            before, gain, lift, mean, variance, of.batch, *of.norm
        )
        after = after.tanh_()
        hidden = after.view(-1, gates, of.hidden).transpose(0, 1)
        v = torch.baddbmm(beta.view(gates, 1, -1), hidden, second.mT).tanh_()
        ctx.save_for_backward(described, before, after, v, second, gain, mean, variance, *found)
        ctx.of, ctx.places = of, places
        ctx.mark_non_differentiable(mean, variance)
        return v.view(gates, -1, 2, width).transpose(0, 1), mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:
        described, before, after, v, second, *norm = ctx.saved_tensors
        of, places, gates = ctx.of, ctx.places, len(v)
        with full_precision(described):
            of_v = gradient.transpose(0, 1).reshape(v.shape)
            of_beta = _aten.tanh_backward(of_v, v)
            hidden = after.view(-1, gates, of.hidden).transpose(0, 1)
            of_second = torch.bmm(of_beta.mT, hidden)
            of_after = torch.bmm(of_beta, second).transpose(0, 1).reshape(after.shape)
            of_before, of_gain, of_lift = _aten.native_batch_norm_backward(
                _aten.tanh_backward(of_after, after),
                before,
                *norm,
                of.batch,
                of.norm[1],
                [True] * 3,
            )
            of_second, of_beta = of_second.flatten(0, 1), of_beta.sum(1).flatten()
            if places is not None:
                of_second, of_beta = of_second[places.options], of_beta[places.options]
            of_first, of_shift = of_before.T @ described, of_before.sum(0)
        whole = of_first, of_shift, of_gain, of_lift, of_second, of_beta
        parts = [part for each, n in zip(whole, of.sizes, strict=True) for part in each.split(n)]
        wanted = ctx.needs_input_grad[4:]
        return (
            None,
            None,
            None,
            None,
            *(g if w else None for g, w in zip(parts, wanted, strict=True)),
        )


class _Places(NamedTuple):
    """Where options are that not all gates have."""

    rows: Tensor
    """Row of all gates' options, one after the other, for each of (gates, 2, width), and the row
    after the last where there is no option."""
    options: Tensor
    """The inverse, for each option."""


@functools.lru_cache(maxsize=512)
def _places(numbers: tuple[tuple[int, int], ...], device: torch.device) -> _Places | None:
    """None if all gates have as many options of both dimensions."""
    width = max(map(max, numbers))
    each = [number for pair in numbers for number in pair]
    if min(each) == width:
        return None
    with torch.inference_mode(False):  # the tables serve training as well
        there = torch.arange(width) < torch.tensor(each)[:, None]
        rows = torch.where(there, there.flatten().cumsum(0).view_as(there) - 1, sum(each))
        return _Places(rows.flatten().to(device), there.flatten().nonzero()[:, 0].to(device))
