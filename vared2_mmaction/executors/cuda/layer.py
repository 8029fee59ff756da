# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""A convolution on a GPU: cuDNN on what the dearest option in use computes, then one kernel."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...layout import as_clips, convolve, settled
from ...ops.conv import check_clips, forced_weights, of_options
from ...ops.cost import Decision, LayerCost
from ...ops.gate import Modulation
from ...ops.options import WHOLE, Options, available, kept
from ..base import Choice, LayerRecord
from . import TYPES
from .gate import Decided, DeviceGate, serves
from .maps import filled_up, maps_of, memory_of, vector
from .rebuild import Tables, make_tables, rebuild


class _Weights(NamedTuple):
    """What is computed, in one type."""

    weight: Tensor
    """(k' or more, C'' / groups, k_t, k_h, k_w), channels innermost, zeros behind both numbers of
    channels."""
    groups: int
    inputs: int
    """Channels of the input that are read, the zeros behind them included."""


class CudaConv:
    """Executes a layer on a GPU without ever waiting for it, for inference.

    Maps are computed in the type of the input, or of autocast; gates in float32. An
    :class:`~vared2_mmaction.executors.base.Executor`, but that a dynamic layer answers with its
    :class:`~vared2_mmaction.ops.Decision`, so that a backbone charges all layers at once.

    Args:
        record: Of a layer for which :func:`~vared2_mmaction.executors.cuda.create` gives an
            executor. Its tensors are copied as far as they are read.
    """

    def __init__(self, record: LayerRecord) -> None:
        self.record = record
        self._weights: dict[torch.dtype, _Weights] = {}
        self._tables: dict[tuple[Options, int], Tables] = {}
        choice = record.choice
        self._gate: DeviceGate | None = None
        if choice is not None and serves(choice.gate):
            self._gate = DeviceGate(choice.gate)
        self._one = torch.ones(1, 1, device=record.weight.device)
        self._weights_in(record.weight.dtype)

    def __call__(
        self, x: Tensor, residual: Tensor | None = None, forced: Tensor | None = None
    ) -> tuple[Tensor, Decision | int] | None:
        """See :class:`~vared2_mmaction.executors.base.Executor`.

        Inputs are best with channels innermost, as outputs are. Not served are those with
        gradients, of another type than ``TYPES``, and on another device.
        """
        record, choice = self.record, self.record.choice
        dtype = _computed_in(x)
        elsewhere = x.device != record.weight.device
        if torch.is_grad_enabled() or elsewhere or not {x.dtype, dtype} <= set(TYPES):
            return None
        with torch.autocast(x.device.type, enabled=False):
            memory = memory_of(x, record.clip_rows, dtype)
            added = None if residual is None else memory_of(residual, record.clip_rows, dtype)
            clips = memory.movedim(-1, 1)
            length = record.output_frames(clips.shape[2])
            if choice is None:
                y = self._finish(self._convolve(clips, dtype), WHOLE, None, length, added)
                maps = maps_of(y, len(record.weight), record.rank)
                return maps, maps.numel() * math.prod(record.weight.shape[1:])
            frames = kept(length, len(choice.tables[0]))
            options = Options(choice.in_use.channel, available(choice.in_use.temporal, len(frames)))
            seen = x if x.dim() == 5 else as_clips(x, record.clip_rows)
            decided = self._decide(seen, choice, len(frames), options, forced)
            z = self._convolve(clips, dtype, options.temporal[0])
            share = None if decided is None else decided.shares
            y = self._finish(z, options, share, length, added)
        ones = self._one.expand(len(clips), -1)
        weights = Modulation(ones, ones) if decided is None else decided.weights
        cost = LayerCost(choice.constants, options, frames, y.shape[2] * y.shape[3])
        return maps_of(y, len(record.weight), record.rank), Decision(weights, cost)

    def _decide(
        self, clips: Tensor, choice: Choice, number: int, options: Options, forced: Tensor | None
    ) -> Decided | None:
        """What is decided for each clip; None where there is nothing to decide.

        Gates are evaluated where options are forced as well, so that it takes as long.
        """
        if max(map(len, options)) == 1:
            if forced is not None:
                check_clips(forced, len(clips))
            return None
        if self._gate is not None:
            decided = self._gate(clips, number, options)
        else:
            every = choice.gate(clips, number)
            pairs = zip(every, options, strict=True)
            decided = _share(Modulation(*(of_options(v, which).float() for v, which in pairs)))
        if forced is None:
            return decided
        return _share(forced_weights(forced, len(clips), options, torch.float32))

    def _convolve(self, clips: Tensor, dtype: torch.dtype, temporal: int = 0) -> Tensor:
        """What is computed, (N, ceil(T / 2^temporal), H, W, k or more), contiguous."""
        record, made = self.record, self._weights_in(dtype)
        (pace, *stride), padding, dilation = record.stride, record.padding, record.dilation
        sizes = (pace * 2**temporal, *stride), padding, dilation
        z = convolve(clips[:, : made.inputs], made.weight, None, *sizes, made.groups)
        return settled(z).movedim(1, -1).contiguous()

    def _finish(
        self,
        z: Tensor,
        options: Options,
        share: Tensor | None,
        frames: int,
        residual: Tensor | None,
    ) -> Tensor:
        """Make of what is computed all maps, (N, T, H, W, C')."""
        record, channels = self.record, len(self.record.weight)
        width = filled_up(channels, z.dtype)
        in_place = options == WHOLE and z.shape[-1] == width
        nothing = record.bias is None and residual is None and not record.relu
        if in_place and nothing:
            return z
        y = z if in_place else z.new_empty(len(z), frames, *z.shape[2:4], width)
        tables = self._tables_of(options, width)
        return rebuild(z, tables, share, channels, frames, y, residual, record.relu)

    def _weights_in(self, dtype: torch.dtype) -> _Weights:
        if (made := self._weights.get(dtype)) is None:
            # What is made here is kept, for calls outside of inference mode too.
            with torch.inference_mode(False), torch.no_grad():
                made = self._weights[dtype] = self._make_weights(dtype)
        return made

    def _make_weights(self, dtype: torch.dtype) -> _Weights:
        record, choice = self.record, self.record.choice
        weight, groups = record.weight.detach(), record.groups
        computed = len(weight)
        if choice is not None:
            computed = choice.constants.channels[choice.in_use.channel[0]]
        if groups > 1:  # whole groups; those channels that are too many are not read
            each = len(weight) // groups
            groups = -(-computed // each)
            weight, inputs = weight[: groups * each], groups * weight.shape[1]
        else:
            inputs = filled_up(weight.shape[1], dtype)
            behind = -computed % vector(dtype), inputs - weight.shape[1]
            weight = F.pad(weight[:computed], (*(0,) * 6, 0, behind[1], 0, behind[0]))
        innermost = weight.to(dtype).contiguous(memory_format=torch.channels_last_3d)
        return _Weights(innermost, groups, inputs)

    def _tables_of(self, options: Options, width: int) -> Tables:
        if (made := self._tables.get((options, width))) is None:
            with torch.inference_mode(False), torch.no_grad():
                made = self._tables[options, width] = self._make_tables(options, width)
        return made

    def _make_tables(self, options: Options, width: int) -> Tables:
        record, choice = self.record, self.record.choice
        channels = len(record.weight)
        if choice is None:
            plain = record.weight.new_tensor((1.0, 0.0)).view(2, 1, 1).expand(2, 1, channels)
            return make_tables(((plain,),), (channels,), record.bias, options, width)
        return make_tables(choice.tables, choice.constants.channels, record.bias, options, width)


def _share(weights: Modulation) -> Decided:
    return Decided(weights, torch.cat([v / v.sum(1, keepdim=True) for v in weights], 1))


def _computed_in(x: Tensor) -> torch.dtype:
    """The type that maps are computed in, which autocast may have chosen."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
