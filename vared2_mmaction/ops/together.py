# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Gates of the same input evaluated together, with gradients.

A gate on its own is a few dozen operations so small that the host takes longer for them than a GPU.
Here those of several gates are one each, on their concatenated parameters, in both directions.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .gate import SoftModulationGate, full_precision
from .watched import is_watched

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
    kinds = {_kind(gate, *of_gate) for gate, of_gate in zip(gates, parts, strict=True)}
    kind = next(iter(kinds))
    # The norm's backward pass asks for clips.
    if kind is None or len(kinds) > 1 or not len(described):
        width = max(gate.width for gate in gates)
        return torch.stack([gate.weigh(described, width) for gate in gates], 1)
    batch = kind.training and len(described) > 1  # one clip has no statistics of a batch
    norms: list[Any] = [norm for _, norm, _ in parts]
    running = [norm.running_mean for norm in norms], [norm.running_var for norm in norms]
    v, *statistics = _Weigh.apply(
        described, kind, batch, *map(torch.cat, running), *_parameters(parts)
    )
    if batch:
        found = (own for each in statistics for own in each.split([kind.hidden] * len(norms)))
        torch._foreach_copy_([*running[0], *running[1]], list(found))
        torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)
    return v


class _Kind(NamedTuple):
    """What gates have in common that are evaluated together."""

    options: tuple[int, int]
    """Numbers of channel and temporal options."""
    hidden: int
    dtype: torch.dtype
    training: bool
    momentum: float
    eps: float


def _kind(gate: nn.Module, first: nn.Module, norm: nn.Module, second: nn.Module) -> _Kind | None:
    """None for a gate or parts of it that may do something else than plain ones."""
    parts = first, norm, second
    if (
        type(gate) is not SoftModulationGate
        or type(norm) is not nn.BatchNorm1d
        or type(first) is not nn.Linear
    ):
        return None
    if type(second) is not nn.Linear or first.bias is None or second.bias is None:
        return None
    if any(map(is_watched, parts)):
        return None
    if norm.momentum is None or norm.running_mean is None or norm.weight is None:
        return None
    return _Kind(
        (gate.channel_options, gate.temporal_options),
        first.out_features,
        first.weight.dtype,
        norm.training,
        norm.momentum,
        norm.eps,
    )


def _parameters(parts: Sequence[tuple[nn.Module, ...]]) -> Iterator[Any]:
    """Weights and then biases of all gates, of the first layers, the norms and the second ones."""
    for of_part in zip(*parts, strict=True):
        yield from (part.weight for part in of_part)
        yield from (part.bias for part in of_part)


class _Weigh(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        described: Tensor,
        kind: _Kind,
        batch: bool,
        mean: Tensor,
        variance: Tensor,
        *given: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        gates = len(given) // 6  # each has weights and biases of three parts
        first, shift, gain, lift, second, beta = (
            torch.cat(given[i : i + gates]) for i in range(0, len(given), gates)
        )
        second = second.view(gates, -1, kind.hidden)
        before = torch.addmm(shift, described, first.T)
        after, *found = _aten.native_batch_norm(
            before, gain, lift, mean, variance, batch, kind.momentum, kind.eps
        )
        after = after.tanh_()
        hidden = after.view(-1, gates, kind.hidden).transpose(0, 1)
        v = torch.baddbmm(beta.view(gates, 1, -1), hidden, second.mT).tanh_()
        ctx.save_for_backward(described, before, after, v, second, gain, mean, variance, *found)
        ctx.kind, ctx.batch = kind, batch
        ctx.mark_non_differentiable(mean, variance)
        return _by_dimension(v, kind.options).transpose(0, 1), mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:
        described, before, after, v, second, *norm = ctx.saved_tensors
        kind, gates = ctx.kind, len(v)
        with full_precision(described):
            of_v = _side_by_side(gradient.transpose(0, 1), kind.options)
            of_beta = _aten.tanh_backward(of_v, v)
            hidden = after.view(-1, gates, kind.hidden).transpose(0, 1)
            of_second = torch.bmm(of_beta.mT, hidden)
            of_after = torch.bmm(of_beta, second).transpose(0, 1).reshape(after.shape)
            of_before, of_gain, of_lift = _aten.native_batch_norm_backward(
                _aten.tanh_backward(of_after, after),
                before,
                *norm,
                ctx.batch,
                kind.eps,
                [True] * 3,
            )
            of_first, of_shift = of_before.T @ described, of_before.sum(0)
        first, last = [kind.hidden] * gates, [sum(kind.options)] * gates
        of_second, of_beta = of_second.flatten(0, 1), of_beta.sum(1).flatten()
        parts = (
            *(part for of in (of_first, of_shift, of_gain, of_lift) for part in of.split(first)),
            *(part for of in (of_second, of_beta) for part in of.split(last)),
        )
        wanted = ctx.needs_input_grad[5:]
        own = (g if want else None for g, want in zip(parts, wanted, strict=True))
        return None, None, None, None, None, *own


def _by_dimension(v: Tensor, options: tuple[int, int]) -> Tensor:
    """Options of both dimensions, (..., options), as (..., 2, width) with zeros behind fewer."""
    if options[0] == options[1]:
        return v.unflatten(-1, (2, -1))
    width = max(options)
    return torch.stack(
        [F.pad(part, (0, width - part.shape[-1])) for part in v.split(options, -1)], -2
    )


def _side_by_side(v: Tensor, options: tuple[int, int]) -> Tensor:
    """The inverse."""
    if options[0] == options[1]:
        return v.flatten(-2)
    return torch.cat([v[..., i, :number] for i, number in enumerate(options)], -1)
