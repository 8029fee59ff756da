# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Blend channels and frames at once, with gradients, by compiled code: for float32 on a CPU by C++,
on a GPU by :mod:`vared2_mmaction.ops.gpu.trained`.

One pass over the maps in each direction, and nothing kept but what was computed, where the general
way makes and keeps the map whose channels are blended and whose frames are not. That asks for
affine cheap operations, which are combined first.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import gpu
from .cheap import ChannelOptions, TemporalOptions
from .library import library


def serves(computed: Tensor) -> bool:
    """Whether there is compiled code for what a layer computed, (N, C, T, H, W)."""
    if torch.compiler.is_compiling():
        return False
    if computed.is_cuda:
        return (kernels := _kernels()) is not None and kernels.serves(computed)
    return library().lies_dense(computed)


def blend(
    computed: Tensor,
    options: tuple[ChannelOptions, TemporalOptions],
    shares: Sequence[Tensor | None],
    active: Sequence[Sequence[int]],
    frames: int,
) -> Tensor:
    """Blend the active options of both dimensions.

    Args:
        computed: What the dearest of them compute, (N, k, t, H, W); see :func:`serves`.
        options: Channel and temporal options, with affine cheap operations.
        shares: Shares of all options of each dimension, (N, options), each row summing to one, or
            None where one option is active.
        active: Options of each dimension that are blended, rising.
        frames: Output frames T.

    Returns:
        Output, (N, C, T, H, W).
    """
    if computed.is_cuda:
        return _kernels().blend(computed, options, shares, active, frames)
    scales, shifts = combine(len(computed), options, shares, active, computed.dtype)
    of = (options[0].kept, *map(list, active), frames)
    return _Blend.apply(computed, scales, shifts, of)


def _kernels() -> Any:
    """Kernels that blend on a GPU; None where there is no Triton for them."""
    if not gpu.is_available():
        return None
    from .gpu import trained

    return trained


def combine(
    clips: int,
    options: tuple[ChannelOptions, TemporalOptions],
    shares: Sequence[Tensor | None],
    active: Sequence[Sequence[int]],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Factors of what is computed, for each clip and output frame of a period.

    Args:
        clips: Number of clips N.
        options: See :func:`blend`, as for the others.
        shares: Shares.
        active: Options.
        dtype: Type of the factors.

    Returns:
        Scales of each pair of active options, (N, channel, temporal, period, C), and the sum of
        their shifts, (N, period, C).
    """
    channel, temporal = options
    shares = [share if share is None else share.to(dtype) for share in shares]
    period = 2 ** active[1][-1]
    own = [channel.affine_factors(i) for i in active[0]]
    scale, shift = (torch.stack(parts).to(dtype) for parts in zip(*own, strict=True))
    over = [
        [part.to(dtype).repeat(period // len(part), 1) for part in temporal.affine_factors(j)]
        for j in active[1]
    ]
    frame_scale, frame_shift = (torch.stack(parts) for parts in zip(*over, strict=True))
    if shares[0] is None:
        scale, shift = scale[None], shift[None]
    else:
        v = shares[0][:, active[0], None]
        scale, shift = v * scale, (v * shift).sum(1, keepdim=True)
    if shares[1] is None:
        weight = frame_scale.new_ones(1, 1, 1, 1)
    else:
        weight = shares[1][:, active[1], None, None]
    weighted = weight * frame_scale  # (N, temporal, period, C)
    scales = scale[:, :, None, None] * weighted[:, None]
    shifts = torch.addcmul(weight * frame_shift, weighted, shift[:, None]).sum(1)
    return (
        scales.expand(clips, *scales.shape[1:]).contiguous(),
        shifts.expand(clips, *shifts.shape[1:]).contiguous(),
    )


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, computed: Tensor, scales: Tensor, shifts: Tensor, of: tuple) -> Tensor:
        ctx.save_for_backward(computed, scales)
        ctx.of = of
        return library().blend(computed, scales, shifts, *of)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        gradient = gradient.contiguous(memory_format=torch.channels_last_3d)
        return *library().blend_backward(gradient, *ctx.saved_tensors, *ctx.of), None
