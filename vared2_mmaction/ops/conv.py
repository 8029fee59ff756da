# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Convolutions that compute only what a clip needs."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from .answer import Answer, Modulation, fetch
from .blend import shares
from .cheap import ChannelOptions, TemporalOptions
from .decision import LayerConstants, LayerCost, LayerDecision, layer_cost, report
from .forced import Forced
from .forms import Conv2d, convolve
from .gate import SoftModulationGate
from .groups import Group, assemble, consecutive, divide, group_by_policy
from .joint import Joint, joint_answer
from .options import kept
from .plan import Plans
from .rebuild import rebuild
from .stack import GateStack


class _DynamicConv(nn.modules.conv._ConvNd):
    """What the dynamic convolutions of both ranks share; a layer is made by convert_from.

    The layer is its stock convolution, with the same parameter names, and three parts of its own:
    ``gate``, ``channel_options`` and ``temporal_options``.
    """

    gate: nn.Module
    channel_options: ChannelOptions
    temporal_options: TemporalOptions
    saturation: float | None
    layer_name: str
    constants: LayerConstants
    skip: bool
    """Whether what a policy leaves out is skipped, or computed and discarded."""
    forced: Forced | None
    """What is done instead of what the gate answers."""
    plans: Plans | None
    """How inputs are convolved, in a fused network."""
    gate_stack: GateStack | None
    """The gate as it is evaluated in a fused network, where no block decides for the layer."""

    @classmethod
    def convert_from(
        cls,
        conv: nn.modules.conv._ConvNd,
        gate: nn.Module,
        channel_options: ChannelOptions,
        temporal_options: TemporalOptions,
        saturation: float | None = math.inf,
        layer_name: str = '',
    ) -> Self:
        """Make a stock convolution dynamic; both share their parameters.

        Args:
            conv: The stock convolution.
            gate: Maps (input clips (N, C, T, H, W), number of temporal options) to a
                :class:`Modulation` and has a method ``macs()``.
            channel_options: Channel options of conv's output channels.
            temporal_options: Temporal options of conv's output channels.
            saturation: See :func:`~vared2_mmaction.ops.blend.shares`; None takes the weights of
                the gate as they are.
            layer_name: Name under which the layer reports its decisions.
        """
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self.__dict__.update({k: v for k, v in conv.__dict__.items() if not k.startswith('_')})
        self._reversed_padding_repeated_twice = conv._reversed_padding_repeated_twice
        self.register_parameter('weight', conv.weight)  # type: ignore[arg-type]
        self.register_parameter('bias', conv.bias)  # type: ignore[arg-type]
        self.gate = gate
        self.channel_options = channel_options
        self.temporal_options = temporal_options
        self.saturation = saturation
        self.layer_name = layer_name
        self.constants = LayerConstants(
            math.prod(conv.weight.shape[1:]),
            channel_options.kept,
            (channel_options.macs_per_element, temporal_options.macs_per_element),
            gate.macs(),  # type: ignore[operator]
            saturation,
        )
        self.skip = True
        self.forced = None
        self.plans = None
        self.gate_stack = None
        return self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; shapes are those of the stock convolution."""
        clips = self._to_clips(x)
        options = len(self._frame_options(clips))
        answer = joint_answer(self, options) or self._decide(clips, options)
        if self.forced is not None:
            answer = self.forced.replace(answer)
        y, decision = self.modulate(clips, answer)
        report(self.layer_name, decision)
        return self._from_clips(y)

    def _decide(self, clips: Tensor, options: int) -> Answer:
        if type(self.gate) is SoftModulationGate:  # of another class only the forward is known
            return Joint((self,), clips, self.gate_stack).answer(self, options)
        return fetch(self.gate(clips, options))

    def num_options(self, x: Tensor) -> tuple[int, int]:
        """Numbers of channel and temporal options that an input leaves the layer."""
        return len(self.channel_options.kept), len(self._frame_options(self._to_clips(x)))

    def modulate(self, clips: Tensor, weights: Answer | Modulation) -> tuple[Tensor, LayerDecision]:
        """Blend the options with given weights.

        All options come from one convolution, that of the dearest option that is on. Clips are
        grouped by their dearest options, and each group executes no more than its own.

        Args:
            clips: Input, (N, C_in, T, H, W).
            weights: Weights of the options.

        Returns:
            Output (N, C_out, T', H', W'), and what was decided.
        """
        answer = fetch(weights) if isinstance(weights, Modulation) else weights
        try:
            groups = group_by_policy(answer.weights, self.saturation)
        except FloatingPointError as error:
            raise FloatingPointError(f'{self.layer_name}: {error}') from error
        if len(groups) == 1:
            y = self._execute(clips, groups[0], lambda: answer.modulation)
        else:
            y = self._execute_groups(clips, answer, groups)
        return y, LayerDecision(answer, self._cost(clips, y))

    def _execute_groups(self, clips: Tensor, answer: Answer, groups: list[Group]) -> Tensor:
        # Gathering a clip copies it; a run of its own reads all weights again.
        if not torch.is_grad_enabled() and clips[0].numel() > self.weight.numel():
            groups = consecutive(groups)
        rows = [group.rows for group in groups]

        @functools.cache
        def modulations() -> list[Modulation]:
            parts = (divide(v, rows) for v in answer.modulation)
            return [Modulation(*part) for part in zip(*parts, strict=True)]

        parts = (
            self._execute(part, group, lambda i=i: modulations()[i])  # type: ignore[misc]
            for i, (part, group) in enumerate(zip(divide(clips, rows), groups, strict=True))
        )
        return assemble(parts, rows)

    def _execute(self, clips: Tensor, group: Group, modulation: Callable[[], Modulation]) -> Tensor:
        """Execute a group's clips with one convolution, that of its dearest options.

        Args:
            clips: The group's.
            group: Which options have a share.
            modulation: Makes the group's weights, where options are blended.
        """
        channel, temporal = group.channel[0], group.temporal[0]
        single = self.saturation is not None and len(group.channel) == len(group.temporal) == 1
        if single and channel == temporal == 0:
            return self._whole(clips)
        z = self._convolve(clips, channel, temporal)
        if single and self.channel_options.affine and self.temporal_options.affine:
            factors = self._factors(channel, temporal, z.dtype)
            return rebuild(z, *factors, self._output_frames(clips.shape[2]))
        return self._blend(clips, z, modulation(), group)

    def _blend(self, clips: Tensor, z: Tensor, modulation: Modulation, group: Group) -> Tensor:
        frames, normalised = self._output_frames(clips.shape[2]), self.saturation is not None
        weights = [
            self._shares(v, active, z.dtype)
            for v, active in zip(modulation, group[1:], strict=True)
        ]
        y = self.channel_options(z, weights[0], group.channel, normalised)
        return self.temporal_options(y, weights[1], group.temporal, frames, normalised)

    def _factors(self, channel: int, temporal: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Scale and shift, (R, C), of what a pair of options rebuilds from what it computes."""
        channel_scale, channel_shift = self.channel_options.affine_factors(channel)
        scale, shift = self.temporal_options.affine_factors(temporal)
        shift = torch.addcmul(shift, scale, channel_shift)
        return (scale * channel_scale).to(dtype), shift.to(dtype)

    def _shares(self, v: Tensor, active: list[int], dtype: torch.dtype) -> Tensor | None:
        if self.saturation is not None:
            if len(active) == 1:
                return None  # one, whatever v is
            v = shares(v, self.saturation)
        return v.to(dtype)

    def _cost(self, clips: Tensor, y: Tensor) -> LayerCost:
        return layer_cost(self.constants, self._frame_options(clips), y.shape[3] * y.shape[4])

    def _frame_options(self, clips: Tensor) -> tuple[int, ...]:
        return kept(self._output_frames(clips.shape[2]), self.temporal_options.num_options)

    def _whole(self, clips: Tensor) -> Tensor:
        """The stock convolution."""
        return self._filtered(clips, self.weight, self.bias, self.out_channels, 1)

    def _convolve(self, clips: Tensor, channel: int, temporal: int) -> Tensor:
        """What a pair of options computes."""
        channels, stride = self.channel_options.kept[channel], 2**temporal
        if self.skip:
            return self._filtered(clips, self.weight, self.bias, channels, stride)
        every = self._filtered(clips, self.weight, self.bias, self.out_channels, 1)
        return every[:, :channels, ::stride]

    def _filtered(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, channels: int, temporal_stride: int
    ) -> Tensor:
        """The first output channels of every temporal_stride-th output frame."""

        def general(conv2d: Conv2d = F.conv2d) -> Tensor:
            return self._filter(x, weight, bias, channels, temporal_stride, conv2d)

        if self.plans is None:
            return general()
        return self.plans.convolve(x, weight, bias, (channels, temporal_stride), general)

    def _filter(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        channels: int,
        temporal_stride: int,
        conv2d: Conv2d,
    ) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != 'zeros' or isinstance(padding, str):
            mode = 'constant' if self.padding_mode == 'zeros' else self.padding_mode
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=mode)
            padding = (0,) * len(self.kernel_size)
        weight, stride, padding, dilation = self._in_3d(weight, padding)
        stride = (stride[0] * temporal_stride, *stride[1:])
        sizes = (stride, padding, dilation)
        if self.groups == 1:
            if channels < weight.shape[0]:
                weight, bias = weight[:channels], None if bias is None else bias[:channels]
            return convolve(x, weight, bias, *sizes, 1, conv2d)
        parts, per_group = [], self.out_channels // self.groups
        for start, stop in _whole_groups(channels, per_group):
            first, groups = start // per_group, -(-(stop - start) // per_group)
            inputs = weight.shape[1]
            parts.append(
                convolve(
                    x[:, first * inputs : (first + groups) * inputs],
                    weight[start:stop],
                    None if bias is None else bias[start:stop],
                    *sizes,
                    groups,
                    conv2d,
                )
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _in_3d(self, weight: Tensor, padding: tuple[int, ...]) -> tuple[Any, ...]:
        """Weight, stride, padding and dilation as those of a 3-D convolution."""
        raise NotImplementedError

    def _to_clips(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _from_clips(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def _output_frames(self, frames: int) -> int:
        raise NotImplementedError


class DynamicConv3d(_DynamicConv, nn.Conv3d):
    """A 3-D convolution over clips, (N, C, T, H, W)."""

    def _in_3d(self, weight: Tensor, padding: tuple[int, ...]) -> tuple[Any, ...]:
        return weight, self.stride, padding, self.dilation

    def _to_clips(self, x: Tensor) -> Tensor:
        if x.dim() != 5:
            raise ValueError(
                f'{self.layer_name}: expected clips (N, C, T, H, W), got {tuple(x.shape)}'
            )
        return x

    def _from_clips(self, y: Tensor) -> Tensor:
        return y

    def _output_frames(self, frames: int) -> int:
        extent = self.dilation[0] * (self.kernel_size[0] - 1) + 1
        padding = sum(self._reversed_padding_repeated_twice[-2:])
        return (frames + padding - extent) // self.stride[0] + 1


class DynamicConv2d(_DynamicConv, nn.Conv2d):
    """A 2-D convolution over frames, (N T, C, H, W), whose clips have ``num_segments`` frames."""

    num_segments: int

    def _in_3d(self, weight: Tensor, padding: tuple[int, ...]) -> tuple[Any, ...]:
        stride, dilation = (1, *self.stride), (1, *self.dilation)
        return weight.unsqueeze(2), stride, (0, *padding), dilation

    def _to_clips(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[0] % self.num_segments:
            raise ValueError(
                f'{self.layer_name}: expected frames (N * {self.num_segments}, C, H, W), because '
                f'num_segments is {self.num_segments}, got {tuple(x.shape)}'
            )
        return x.view(-1, self.num_segments, *x.shape[1:]).transpose(1, 2)

    def _from_clips(self, y: Tensor) -> Tensor:
        return y.transpose(1, 2).flatten(0, 1)

    def _output_frames(self, frames: int) -> int:
        return frames


def _whole_groups(channels: int, per_group: int) -> Iterator[tuple[int, int]]:
    """Cut the first channels so that no cut crosses a group that is only begun."""
    whole = channels // per_group * per_group
    if whole:
        yield 0, whole
    if channels > whole:
        yield whole, channels
