# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""A gate in one launch: description, both layers, opening, options in use, shares."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from ...ops.gate import GRID, Modulation, SoftModulationGate, sample_grid
from ...ops.options import Options
from ...watched import is_watched

_CHANNELS = tl.constexpr(64)
"""Channels that a program describes."""
_FRAMES = tl.constexpr(8)
"""Frames that it reads at a time."""
_POSITIONS = tl.constexpr(GRID * GRID)
_SIZES = str.split(
    'channels frames hidden outputs columns positions first_position x_clip x_frame x_row x_column '
    'row_step column_step channel_options temporal_options in_use cheapest_channel '
    'cheapest_temporal used floor'
)


class Decided(NamedTuple):
    """What a gate says of N clips, on the device."""

    weights: Modulation
    """Weights of the options in use."""
    shares: Tensor
    """Shares of the channel and of the temporal options in use, (N, both)."""


@triton.jit(do_not_specialize=_SIZES)
def _decide(
    x, first, shift, second, beta, partial, arrived, weights, shares,
    channels, frames, hidden, outputs, columns, positions, first_position,
    x_clip, x_frame, x_row, x_column, x_channel, row_step, column_step,
    channel_options, temporal_options, in_use, cheapest_channel, cheapest_temporal,
    used, floor,
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
        v = _tanh(tl.sum(answers[:, None] * later, 0) + own_beta)
        is_channel = output < channel_options
        is_temporal = (output >= channel_options) & (output < channel_options + temporal_options)
        is_used = ((in_use >> output) & 1) != 0
        c, share_c = _open(
            v, output, is_channel, is_used, channel_options, channel_options - 1,
            cheapest_channel, floor,
        )  # fmt: skip
        t, share_t = _open(
            v, output, is_temporal, is_used, temporal_options,
            channel_options + temporal_options - 1, cheapest_temporal, floor,
        )  # fmt: skip
        # Options in use stand side by side.
        below = in_use & ((1 << output) - 1)
        place = clip * used + tl.zeros_like(output)
        for bit in tl.static_range(OUTPUTS):
            place += (below >> bit) & 1
        tl.store(weights + place, c + t, mask=is_used)
        tl.store(shares + place, share_c + share_t, mask=is_used)


@triton.jit
def _open(v, output, own, is_used, number, last, cheapest, floor):
    """Weights and shares of the options of a dimension that are in use, zero for all others.

    Args:
        v: Weights of all options before any is switched off.
        output: Their numbers.
        own: Which are of this dimension.
        is_used: Which are in use.
        number: How many this dimension has.
        last: The last of them.
        cheapest: The last of them in use.
        floor: Weight of the last one where all would be off.
    """
    opened = tl.where(v < 0, 0.0, v)  # NaN stays
    opened = tl.where(own, opened, 0.0)
    all_off = tl.sum((opened != 0).to(tl.int32), 0) == 0
    opened = tl.where(all_off & (output == last), floor, opened)
    opened = tl.where(number == 1, tl.where(own, 1.0, 0.0), opened)
    chosen = tl.where(is_used, opened, 0.0)
    none_used = tl.sum((chosen != 0).to(tl.int32), 0) == 0
    chosen = tl.where(none_used & (output == cheapest), tl.max(opened, 0), chosen)
    several = tl.sum((own & is_used).to(tl.int32), 0) > 1
    share = tl.where(own & is_used, tl.where(several, chosen / tl.sum(chosen, 0), 1.0), 0.0)
    return chosen, share


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


def serves(gate: nn.Module) -> bool:
    """Whether a gate is one that :class:`DeviceGate` can be made of: a plain one in evaluation
    mode, with its normalisation folded, that nobody watches."""
    return (
        type(gate) is SoftModulationGate
        and not gate.training
        and isinstance(gate.bn, nn.Identity)
        and not any(is_watched(module) for module in gate.modules())
    )


class DeviceGate:
    """A gate by one kernel, in float32. Parameters are those that the gate had when it was made.

    Args:
        gate: See :func:`serves`.
    """

    def __init__(self, gate: Any) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self._first = gate.fc1.weight.T.float().contiguous()  # (inputs, hidden)
            self._shift = gate.fc1.bias.detach().float().clone()
            self._second = gate.fc2.weight.T.float().contiguous()  # (hidden, options)
            self._beta = gate.fc2.bias.detach().float().clone()
        self._motion, self._floor = gate.motion, gate.floor
        self._numbers = gate.channel_options, gate.temporal_options
        self._arrived: dict[int, Tensor] = {}

    def __call__(self, clips: Tensor, number: int, options: Options) -> Decided:
        """Decide.

        Args:
            clips: Input of the layer, (N, C, T, H, W).
            number: Number of temporal options that the clips' length allows.
            options: Options in use.
        """
        clips_number, channels, frames = clips.shape[:3]
        hidden, outputs = self._second.shape
        (first_row, row_step, rows), (first_column, column_step, columns) = sample_grid(clips)
        strides = clips.stride()
        blocks = triton.cdiv(channels, _CHANNELS.value)
        padded = triton.next_power_of_2(hidden)
        used = len(options.channel), len(options.temporal)
        before = self._numbers[0]
        numbers = (*options.channel, *(before + j for j in options.temporal))
        weights, shares = self._first.new_empty((2, clips_number, sum(used)))
        if clips_number:
            with torch.cuda.device_of(clips):
                _decide[(clips_number, blocks)](
                    clips, self._first, self._shift, self._second, self._beta,
                    self._first.new_empty((clips_number, blocks, padded)),
                    self._arrivals(clips_number), weights, shares,
                    channels, frames, hidden, outputs, columns, rows * columns,
                    first_row * strides[3] + first_column * strides[4],
                    strides[0], strides[2], strides[3], strides[4], strides[1],
                    row_step, column_step, before, number, sum(1 << i for i in numbers),
                    options.channel[-1], before + options.temporal[-1], sum(used), self._floor,
                    self._motion, padded, triton.next_power_of_2(outputs),
                    triton.next_power_of_2(blocks), num_warps=8,
                )  # fmt: skip
        return Decided(Modulation(*weights.split(used, 1)), shares)

    def _arrivals(self, clips: int) -> Tensor:
        """Zeros, (N,): every launch leaves them as it found them."""
        if (arrived := self._arrived.get(clips)) is None:
            arrived = torch.zeros(clips, dtype=torch.int32, device=self._first.device)
            self._arrived[clips] = arrived
        return arrived
