# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Convolutions that compute only what a clip needs."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from .cheap import ChannelOptions, TemporalOptions
from .decision import LayerCost, LayerDecision, report
from .gate import Modulation
from .groups import Group, group_by_policy
from .options import kept


class _DynamicConv(nn.modules.conv._ConvNd):
    """What the dynamic convolutions of both ranks share; a layer is made by convert_from.

    The layer is its stock convolution, with the same parameter names, and three parts of its own:
    ``gate``, ``channel_options`` and ``temporal_options``.
    """

    gate: nn.Module
    channel_options: ChannelOptions
    temporal_options: TemporalOptions
    layer_name: str
    normalise: bool

    @classmethod
    def convert_from(
        cls,
        conv: nn.modules.conv._ConvNd,
        gate: nn.Module,
        channel_options: ChannelOptions,
        temporal_options: TemporalOptions,
        normalise: bool = True,
        layer_name: str = '',
    ) -> Self:
        """Make a stock convolution dynamic; both share their parameters.

        Args:
            conv: The stock convolution.
            gate: Maps (input clips (N, C, T, H, W), number of temporal options) to a
                :class:`Modulation` and has a method ``macs()``.
            channel_options: Channel options of conv's output channels.
            temporal_options: Temporal options of conv's output channels.
            normalise: Whether the weights of a dimension are scaled to sum to one.
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
        self.normalise = normalise
        self.layer_name = layer_name
        return self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; shapes are those of the stock convolution."""
        clips = self._to_clips(x)
        modulation = self.gate(clips, len(self._frame_options(clips)))
        y, decision = self.modulate(clips, modulation)
        report(self.layer_name, decision)
        return self._from_clips(y)

    def modulate(self, clips: Tensor, modulation: Modulation) -> tuple[Tensor, LayerDecision]:
        """Blend the options with given weights.

        In training all options come from one convolution, that of the dearest option any clip
        has on. In evaluation the clips are grouped by policy, and each group executes no more
        than its own.

        Args:
            clips: Input, (N, C_in, T, H, W).
            modulation: Weights of the options.

        Returns:
            Output (N, C_out, T', H', W'), and what was decided.
        """
        try:
            groups = group_by_policy(modulation, together=self.training)
        except FloatingPointError as error:
            raise FloatingPointError(f'{self.layer_name}: {error}') from error
        if len(groups) == 1:
            y = self._blend(clips, modulation, groups[0])
        else:
            parts = [
                self._blend(clips[g.rows], Modulation(*(v[g.rows] for v in modulation)), g)
                for g in groups
            ]
            order = torch.tensor([row for g in groups for row in g.rows], device=clips.device)
            y = torch.cat(parts)[order.argsort()]
        return y, LayerDecision(modulation, self._cost(clips, y))

    def _blend(self, clips: Tensor, modulation: Modulation, group: Group) -> Tensor:
        """Execute a group's clips with one convolution, that of its dearest options."""
        channels, stride = self.channel_options.kept[group.channel[0]], 2 ** group.temporal[0]
        z = self._convolve(clips, channels, stride)
        channel_weights = self._weights(modulation.channel, group.channel, z.dtype)
        y = self.channel_options(z, channel_weights, group.channel, self.normalise)
        temporal_weights = self._weights(modulation.temporal, group.temporal, z.dtype)
        frames = self._output_frames(clips.shape[2])
        return self.temporal_options(y, temporal_weights, group.temporal, frames, self.normalise)

    def _weights(self, v: Tensor, active: Sequence[int], dtype: torch.dtype) -> Tensor | None:
        if self.normalise:
            if len(active) == 1:
                return None  # v / v, whose gradient is zero
            v = v / v.sum(1, keepdim=True)
        return v.to(dtype)

    def _cost(self, clips: Tensor, y: Tensor) -> LayerCost:
        frames, area = y.shape[2], y.shape[3] * y.shape[4]
        channels, computed = self.channel_options.kept, self._frame_options(clips)
        return LayerCost(
            unit=self.weight[0].numel() * area,
            channels=channels,
            frames=computed,
            channel_operation=tuple(
                self.channel_options.macs(i) * area for i in range(len(channels))
            ),
            temporal_operation=tuple(
                self.temporal_options.macs(j, frames) * area for j in range(len(computed))
            ),
            gate=self.gate.macs(),  # type: ignore[operator]
        )

    def _frame_options(self, clips: Tensor) -> tuple[int, ...]:
        return kept(self._output_frames(clips.shape[2]), self.temporal_options.num_options)

    def _filtered(self, x: Tensor, channels: int, stride: tuple[int, ...]) -> Tensor:
        """The first output channels of the convolution."""
        padding: Any = self.padding
        if self.padding_mode != 'zeros' or isinstance(padding, str):
            mode = 'constant' if self.padding_mode == 'zeros' else self.padding_mode
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=mode)
            padding = 0
        convolve = F.conv2d if len(stride) == 2 else F.conv3d
        parts, per_group = [], self.out_channels // self.groups
        for start, stop in _whole_groups(channels, per_group):
            first, groups = start // per_group, -(-(stop - start) // per_group)
            inputs = self.weight.shape[1]
            parts.append(
                convolve(
                    x[:, first * inputs : (first + groups) * inputs],
                    self.weight[start:stop],
                    None if self.bias is None else self.bias[start:stop],
                    stride,
                    padding,
                    self.dilation,
                    groups,
                )
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _to_clips(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _from_clips(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def _output_frames(self, frames: int) -> int:
        raise NotImplementedError

    def _convolve(self, clips: Tensor, channels: int, temporal_stride: int) -> Tensor:
        raise NotImplementedError


class DynamicConv3d(_DynamicConv, nn.Conv3d):
    """A 3-D convolution over clips, (N, C, T, H, W)."""

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

    def _convolve(self, clips: Tensor, channels: int, temporal_stride: int) -> Tensor:
        stride = (self.stride[0] * temporal_stride, *self.stride[1:])
        return self._filtered(clips, channels, stride)


class DynamicConv2d(_DynamicConv, nn.Conv2d):
    """A 2-D convolution over frames, (N T, C, H, W), whose clips have ``num_segments`` frames."""

    num_segments: int

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

    def _convolve(self, clips: Tensor, channels: int, temporal_stride: int) -> Tensor:
        frames = clips.transpose(1, 2)[:, ::temporal_stride]
        y = self._filtered(frames.flatten(0, 1), channels, self.stride)
        return y.view(*frames.shape[:2], *y.shape[1:]).transpose(1, 2)


def _whole_groups(channels: int, per_group: int) -> Iterator[tuple[int, int]]:
    """Cut the first channels so that no cut crosses a group that is only begun."""
    whole = channels // per_group * per_group
    if whole:
        yield 0, whole
    if channels > whole:
        yield whole, channels
