# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""A gate in one launch."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gate import GRID, sample_grid
from ..lazy import Made
from .launch import reads

_CHANNELS = tl.constexpr(64)
"""Channels that a program describes."""
_FRAMES = tl.constexpr(8)
"""Frames that it reads at a time."""
_POSITIONS = tl.constexpr(GRID * GRID)


@triton.jit
def _weigh(
    x, first, shift, second, beta, partial, arrived, v,
    channels, frames, hidden, outputs, columns, positions, first_position,
    x_clip, x_frame, x_row, x_column, x_channel, row_step, column_step,
    MOTION: tl.constexpr, HIDDEN: tl.constexpr, OUTPUTS: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    clip, block, blocks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    channel = block * _CHANNELS + tl.arange(0, _CHANNELS)
    there = channel < channels
    sample = tl.arange(0, _FRAMES * _POSITIONS)
    position, ahead = sample % _POSITIONS, sample // _POSITIONS
    row, column = position // columns, position % columns
    base = x + clip.to(tl.int64) * x_clip + first_position
    offset = row * (row_step * x_row) + column * (column_step * x_column)
    # Parameters are asked for before what has to be waited for.
    units, output = tl.arange(0, HIDDEN), tl.arange(0, OUTPUTS)
    wanted = there[:, None] & (units < hidden)[None, :]
    of_mean = first + channel[:, None] * hidden + units[None, :]
    mean_weights = tl.load(of_mean, mask=wanted, other=0.0)
    if MOTION:
        motion_weights = tl.load(of_mean + channels * hidden, mask=wanted, other=0.0)
    constant = tl.load(shift + units, mask=units < hidden, other=0.0)
    later = tl.load(
        second + units[:, None] * outputs + output[None, :],
        mask=(units < hidden)[:, None] & (output < outputs)[None, :],
        other=0.0,
    )
    total = tl.zeros((_CHANNELS,), tl.float32)
    moved = tl.zeros((_CHANNELS,), tl.float32)
    for start in range(0, frames, _FRAMES):
        frame = start + ahead
        read = (position < positions) & (frame < frames)
        at = base + (offset + frame * x_frame)[:, None] + (channel * x_channel)[None, :]
        now = tl.load(at, mask=read[:, None] & there[None, :], other=0.0).to(tl.float32)
        total += tl.sum(now, 0)
        if MOTION:
            followed = (position < positions) & (frame + 1 < frames)
            both = followed[:, None] & there[None, :]
            after = tl.load(at + x_frame, mask=both, other=0.0).to(tl.float32)
            moved += tl.sum(tl.where(both, tl.abs(after - now), 0.0), 0)
    mean = total / (frames * positions)
    part = tl.sum(mean[:, None] * mean_weights, 0)
    if MOTION:
        mean = moved / (tl.maximum(frames - 1, 1) * positions)
        part += tl.sum(mean[:, None] * motion_weights, 0)
    parts = partial + clip * blocks * HIDDEN
    tl.store(parts + block * HIDDEN + units, part)
    # Whoever comes last adds the parts up, in one order.
    tl.debug_barrier()
    before = tl.atomic_add(arrived + clip, 1, sem='acq_rel')
    if before == blocks - 1:
        tl.store(arrived + clip, 0)
        program = tl.arange(0, PROGRAMS)
        every = tl.load(
            parts + program[:, None] * HIDDEN + units[None, :],
            mask=(program < blocks)[:, None],
            other=0.0,
            cache_modifier='.cg',
        )
        answers = _tanh(tl.sum(every, 0) + constant)
        own_beta = tl.load(beta + output, mask=output < outputs, other=0.0)
        answer = _tanh(tl.sum(answers[:, None] * later, 0) + own_beta)
        tl.store(v + clip * outputs + output, answer, mask=output < outputs)


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


class DeviceGate(Made):
    """A gate by one kernel."""

    def __init__(self) -> None:
        self._arrived: dict[int, Tensor] = {}

    def __call__(self, gate: Any, clips: Tensor) -> Tensor | None:
        """What the gate weighs, (N, 2, width), or None where kernels cannot be launched.

        Args:
            gate: The :class:`~vared2_mmaction.ops.fused_gate.FusedGate`.
            clips: What the gate sees, (N, C, T, H, W).
        """
        if not reads(clips):
            return None
        number, channels, frames = clips.shape[:3]
        hidden, outputs = gate.second.shape
        (first_row, row_step, rows), (first_column, column_step, columns) = sample_grid(clips)
        strides = clips.stride()
        blocks = triton.cdiv(channels, _CHANNELS.value)
        padded = triton.next_power_of_2(hidden)
        v = gate.first.new_empty((number, 2, outputs // 2))
        if not number:
            return v
        with torch.cuda.device_of(v):
            _weigh[(number, blocks)](
                clips, gate.first, gate.shift, gate.second, gate.beta,
                gate.first.new_empty((number, blocks, padded)), self._arrivals(v), v,
                channels, frames, hidden, outputs, columns, rows * columns,
                first_row * strides[3] + first_column * strides[4],
                strides[0], strides[2], strides[3], strides[4], strides[1], row_step, column_step,
                gate.motion, padded, triton.next_power_of_2(outputs),
                triton.next_power_of_2(blocks), num_warps=8,
            )  # fmt: skip
        return v

    def _arrivals(self, v: Tensor) -> Tensor:
        """Zeros, (N,): every launch leaves them as it found them."""
        if (arrived := self._arrived.get(len(v))) is None or arrived.device != v.device:
            arrived = torch.zeros(len(v), dtype=torch.int32, device=v.device)
            self._arrived[len(v)] = arrived
        return arrived
