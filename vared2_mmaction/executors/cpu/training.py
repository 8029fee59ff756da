# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Mix options with gradients in C++, for float32 clips on a CPU: one pass over the maps in each
direction, and nothing kept but what was computed."""

from typing import Any

import torch
from torch import Tensor

from ...layout import innermost
from ...ops.cheap import ChannelOptions, TemporalOptions
from ...ops.mixing import Shares, mix
from ...ops.options import Options
from .library import library


def mix_compiled(
    z: Tensor,
    share: Shares,
    options: Options,
    channel_options: ChannelOptions,
    temporal_options: TemporalOptions,
    frames: int,
) -> Tensor:
    """Mix options; see :func:`vared2_mmaction.ops.mixing.mix`, which is called for what is not
    float32 with channels innermost on a CPU."""
    if not _serves(z):
        return mix(z, share, options, channel_options, temporal_options, frames)
    channel = channel_options.tables(options.channel)
    scales, shifts = combine(z, share, channel, temporal_options.tables(options.temporal))
    of = library().Mixed(
        kept=channel_options.kept, channel=options.channel, temporal=options.temporal, frames=frames
    )
    return _Mix.apply(z, scales, shifts, of)


def _serves(z: Tensor) -> bool:
    """Whether there is compiled code for what a layer computed, (N, C, T, H, W)."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(z) is not Tensor:
        return False
    return library().lies_dense(z)


def combine(
    z: Tensor, share: Shares, of_channels: Tensor, of_frames: Tensor
) -> tuple[Tensor, Tensor]:
    """Factors of what is computed, for each clip and output frame of a period, by the shares and
    the tables of channel and of temporal options.

    Returns:
        Scales of each pair of options, (N, channel, temporal, period, C), and the sum of their
        shifts, (N, period, C).
    """
    scale, shift = of_channels[:, :, 0].to(z.dtype).unbind(0)
    frame_scale, frame_shift = of_frames.to(z.dtype).unbind(0)
    channel, temporal = (z.new_ones(1, 1) if v is None else v.to(z.dtype) for v in share)
    own, over = channel[..., None], temporal[..., None, None]
    scale, shift = own * scale, (own * shift).sum(1, keepdim=True)
    weighted = over * frame_scale  # (N, temporal, period, C)
    scales = scale[:, :, None, None] * weighted[:, None]
    shifts = torch.addcmul(over * frame_shift, weighted, shift[:, None]).sum(1)
    return (
        scales.expand(len(z), *scales.shape[1:]).contiguous(),
        shifts.expand(len(z), *shifts.shape[1:]).contiguous(),
    )


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, computed: Tensor, scales: Tensor, shifts: Tensor, of: Any) -> Tensor:
        ctx.save_for_backward(computed, scales)
        ctx.of = of
        return library().blend(computed, scales, shifts, of)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return *library().blend_backward(innermost(gradient), *ctx.saved_tensors, ctx.of), None
