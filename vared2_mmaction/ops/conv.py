# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Convolutions that compute what their gates ask for, of the options in use."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from ..layout import as_clips, as_frames, convolve
from .cheap import ChannelOptions, TemporalOptions
from .cost import Decision, LayerConstants, LayerCost
from .gate import Modulation
from .mixing import mix, shares
from .options import WHOLE, Options, available, kept


class _DynamicConv(nn.modules.conv._ConvNd):
    """What the dynamic convolutions of both ranks share; a layer is made by convert_from.

    The layer is its stock convolution, with the same parameter names, and three parts of its own:
    ``gate``, ``channel_options`` and ``temporal_options``.

    Nothing here asks the host what a gate decided: the convolution computes the dearest options in
    use, and shares of zero leave out the others. So a layer can be compiled, traced and exported;
    clips that need less are computed with less by :mod:`vared2_mmaction.executors`.
    """

    gate: nn.Module
    channel_options: ChannelOptions
    temporal_options: TemporalOptions
    layer_name: str
    constants: LayerConstants
    forced: Tensor | None
    """Options, (N or 1, 2), that take the place of the gate's decision."""
    mix: Any
    """Mixes options: :func:`~vared2_mmaction.ops.mixing.mix`, or compiled code for it."""
    decisions: tuple[Decision, ...] | None
    """What the layer has decided since a backbone began to collect that, run by run."""

    @classmethod
    def convert_from(
        cls,
        conv: nn.modules.conv._ConvNd,
        gate: nn.Module,
        channel_options: ChannelOptions,
        temporal_options: TemporalOptions,
        layer_name: str = '',
    ) -> Self:
        """Make a stock convolution dynamic; both share their parameters.

        Args:
            conv: The stock convolution.
            gate: Maps (input clips (N, C, T, H, W), number of temporal options) to a
                :class:`Modulation` and has a method ``macs()``.
            channel_options: Channel options of conv's output channels.
            temporal_options: Temporal options of conv's output channels.
            layer_name: Name of the layer in its backbone.
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
        self.layer_name = layer_name
        kernel, macs = conv.weight.shape[1:].numel(), gate.macs()  # type: ignore[operator]
        self.constants = LayerConstants(kernel, channel_options.kept, macs)
        self.forced = self.decisions = None
        self.mix = mix
        self._prepare_sizes()
        return self.train(conv.training)

    def _prepare_sizes(self) -> None:
        """Sizes as those of a convolution in 3-D, (time, height, width)."""
        missing, padding = 3 - len(self.kernel_size), self.padding
        self._pad_mode: str | None = None
        if self.padding_mode != 'zeros' or isinstance(padding, str):  # padded beforehand
            self._pad_mode = 'constant' if self.padding_mode == 'zeros' else self.padding_mode
            padding = (0,) * len(self.kernel_size)
        self._stride = (1,) * missing + self.stride
        self._padding = (0,) * missing + padding
        self._dilation = (1,) * missing + self.dilation
        reach = self.dilation[0] * (self.kernel_size[0] - 1)
        added = sum(self._reversed_padding_repeated_twice[-2:])
        self._left_out = 0 if missing else reach - added

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; shapes are those of the stock convolution."""
        clips = self.to_clips(x)
        options, frames = self.options_of(clips.shape[2])
        weights = self.weigh(clips, options, len(frames))
        y = self.modulate(clips, weights, options)
        if self.decisions is not None:
            cost = LayerCost(self.constants, options, frames, y.shape[-2] * y.shape[-1])
            self.decisions = (*self.decisions, Decision(weights, cost))
        return self.from_clips(y)

    @property
    def in_use(self) -> Options:
        """Options in use."""
        return Options(self.channel_options.in_use, self.temporal_options.in_use)

    @property
    def num_options(self) -> tuple[int, int]:
        """Numbers of channel and temporal options, in use or not."""
        return len(self.channel_options.kept), self.temporal_options.num_options

    def options_of(self, frames: int) -> tuple[Options, tuple[int, ...]]:
        """What an input of so many frames leaves the layer: the options in use, and the output
        frames that each temporal option computes, in use or not, the first all of them."""
        computed = kept(self.output_frames(frames), self.temporal_options.num_options)
        temporal = available(self.temporal_options.in_use, len(computed))
        return Options(self.channel_options.in_use, temporal), computed

    def output_frames(self, frames: int) -> int:
        """Number of output frames of an input of so many."""
        return (frames - self._left_out - 1) // self._stride[0] + 1

    def modulate(self, clips: Tensor, weights: Modulation, options: Options) -> Tensor:
        """Convolve and mix options with given weights.

        Args:
            clips: Input, (N, C_in, T, H, W).
            weights: Weights of the options, (N, options) of each dimension.
            options: Which options they are of. All come from one convolution, that of the dearest.

        Returns:
            Output (N, C_out, T', H', W').
        """
        z = self.convolve(clips, options.channel[0], options.temporal[0])
        if options == WHOLE:
            return z
        share, frames = shares(weights), self.output_frames(clips.shape[2])
        return self.mix(z, share, options, self.channel_options, self.temporal_options, frames)

    def convolve(self, clips: Tensor, channel: int = 0, temporal: int = 0) -> Tensor:
        """What a pair of options computes: the first channels of every 2^temporal-th frame.

        Returns:
            (N, kept[channel], ceil(T' / 2^temporal), H', W').
        """
        channels, weight, bias = self.channel_options.kept[channel], self.weight, self.bias
        if self._pad_mode is not None:
            clips = F.pad(clips, self._reversed_padding_repeated_twice, mode=self._pad_mode)
        if weight.dim() == 4:
            weight = weight.unsqueeze(2)
        pace, *area = self._stride
        sizes = (pace * 2**temporal, *area), self._padding, self._dilation
        if self.groups == 1:
            if channels < len(weight):
                weight, bias = weight[:channels], None if bias is None else bias[:channels]
            return convolve(clips, weight, bias, *sizes, 1)
        # No convolution crosses a group that is only begun.
        inputs, per_group = weight.shape[1], self.out_channels // self.groups
        whole, parts = channels // per_group * per_group, []
        for start, stop in ((0, whole), (whole, channels)):
            if start < stop:
                first, groups = start // per_group, -(-(stop - start) // per_group)
                read = clips[:, first * inputs : (first + groups) * inputs]
                own = weight[start:stop], None if bias is None else bias[start:stop]
                parts.append(convolve(read, *own, *sizes, groups))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def weigh(self, clips: Tensor, options: Options, number: int) -> Modulation:
        """Weights of the options in use, of which the clips' length allows so many temporal."""
        if self.forced is not None:
            return forced_weights(self.forced, len(clips), options, self.weight.dtype)
        if len(options.channel) == len(options.temporal) == 1:
            # There is nothing to choose: one option has all, whatever its weight is.
            ones = clips.new_ones(len(clips), 1, dtype=torch.float)
            return Modulation(ones, ones)
        return Modulation(*map(of_options, self.gate(clips, number), options))

    def to_clips(self, x: Tensor) -> Tensor:
        """Input of the layer as clips, (N, C, T, H, W)."""
        if x.dim() != 5:
            raise ValueError(
                f'{self.layer_name}: expected clips (N, C, T, H, W), got {tuple(x.shape)}'
            )
        return x

    def from_clips(self, y: Tensor) -> Tensor:
        """The inverse, for an output."""
        return y


class DynamicConv3d(_DynamicConv, nn.Conv3d):
    """A 3-D convolution over clips, (N, C, T, H, W)."""


class DynamicConv2d(_DynamicConv, nn.Conv2d):
    """A 2-D convolution over frames, (N T, C, H, W), whose clips have ``num_segments`` frames."""

    num_segments: int

    def to_clips(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[0] % self.num_segments:
            raise ValueError(
                f'{self.layer_name}: expected frames (N * {self.num_segments}, C, H, W), because '
                f'num_segments is {self.num_segments}, got {tuple(x.shape)}'
            )
        return as_clips(x, self.num_segments)

    def from_clips(self, y: Tensor) -> Tensor:
        return as_frames(y)


def of_options(v: Tensor, options: tuple[int, ...]) -> Tensor:
    """Weights of some options of a dimension, of which one at least is on.

    Args:
        v: Weights of all options, (N, options).
        options: Some of them; the cheapest takes the weight of others where all of these are off.
    """
    if options == tuple(range(v.shape[1])):
        return v
    first, last = options[0], options[-1]
    if options == tuple(range(first, last + 1)):
        chosen = v[:, first : last + 1]
    else:
        chosen = torch.stack([v[:, i] for i in options], 1)
    cheapest = F.pad(v.amax(1, keepdim=True), (len(options) - 1, 0))
    return torch.where(chosen.any(1, keepdim=True), chosen, cheapest)


def forced_weights(forced: Tensor, clips: int, options: Options, dtype: torch.dtype) -> Modulation:
    """Weight one for a given option of each dimension, clamped to those that there are.

    Args:
        forced: Options, (N, 2), or (1, 2) for all clips.
        clips: Number of clips N.
        options: Those that there are.
        dtype: Type of the weights.

    Raises:
        ValueError: If options are forced for another number of clips.
    """
    check_clips(forced, clips)
    weights = []
    for which, column in zip(options, forced.unbind(1), strict=True):
        column = column.clamp(which[0], which[-1]).expand(clips)
        weights.append(torch.stack([column == i for i in which], 1).to(dtype))
    return Modulation(*weights)


def check_clips(forced: Tensor, clips: int) -> None:
    """Raise a ValueError if options are forced for another number of clips."""
    if len(forced) not in (1, clips):
        raise ValueError(f'policy: expected a batch of {len(forced)} clips, got {clips}')
