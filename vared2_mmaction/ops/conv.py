# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Convolutions that compute only what a clip needs."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from . import compiled_blend, recompute
from .answer import Answer, Modulation, fetch
from .cheap import ChannelOptions, TemporalOptions
from .decision import ChargedDecision, LayerConstants, LayerCost, LayerDecision, layer_cost, report
from .epilogue import NOTHING, Epilogue
from .forced import Forced
from .forms import Conv2d, as_clips, as_frames, convolve
from .fused_gate import FusedGate
from .gate import SoftModulationGate
from .groups import Group, assemble, consecutive, divide, group_by_policy
from .options import kept
from .plan import Plans
from .rebuild import rebuild


class Part(NamedTuple):
    """The first output channels of every temporal_stride-th output frame of a convolution."""

    weight: Tensor
    bias: Tensor | None
    channels: int
    temporal_stride: int


class _DynamicConv(nn.modules.conv._ConvNd):
    """What the dynamic convolutions of both ranks share; a layer is made by convert_from.

    The layer is its stock convolution, with the same parameter names, and three parts of its own:
    ``gate``, ``channel_options`` and ``temporal_options``.
    """

    gate: nn.Module
    channel_options: ChannelOptions
    temporal_options: TemporalOptions
    normalised: bool
    """Whether the shares of options are their weights divided by their sum."""
    layer_name: str
    constants: LayerConstants
    skip: bool
    """Whether what a policy leaves out is skipped, or computed and discarded."""
    forced: Forced | None
    """What is done instead of what the gate answers."""
    plans: Plans | None
    """How inputs are convolved, in a fused network."""
    compiled: Any
    """Compiled code of a fused network: a :class:`~vared2_mmaction.ops.compiled.CompiledConv` or a
    :class:`~vared2_mmaction.ops.gpu.layer.DeviceConv`."""
    compiled_blend: bool
    """Whether compiled code blends; see :mod:`~vared2_mmaction.ops.compiled_blend`."""
    relu: bool
    """Whether ReLU follows at once, in a fused network."""
    fused_gate: FusedGate | None
    """The gate as it is evaluated in a fused network."""
    _costs: dict[tuple[int, int], LayerCost]
    """Cost of each number of frames of the input and of positions of the output."""

    @classmethod
    def convert_from(
        cls,
        conv: nn.modules.conv._ConvNd,
        gate: nn.Module,
        channel_options: ChannelOptions,
        temporal_options: TemporalOptions,
        normalised: bool = True,
        layer_name: str = '',
    ) -> Self:
        """Make a stock convolution dynamic; both share their parameters.

        Args:
            conv: The stock convolution.
            gate: Maps (input clips (N, C, T, H, W), number of temporal options) to a
                :class:`Modulation` and has a method ``macs()``.
            channel_options: Channel options of conv's output channels.
            temporal_options: Temporal options of conv's output channels.
            normalised: Whether options are blended with the gate's weights divided by their sum;
                otherwise with the weights as they are.
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
        self.normalised = normalised
        self.layer_name = layer_name
        self.constants = LayerConstants(
            math.prod(conv.weight.shape[1:]),
            channel_options.kept,
            (channel_options.macs_per_element, temporal_options.macs_per_element),
            gate.macs(),  # type: ignore[operator]
        )
        self.skip = True
        self.forced = None
        self.plans = None
        self.compiled = None
        self.compiled_blend = False
        self.relu = False
        self._costs = {}
        self.fused_gate = None
        return self.train(conv.training)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve; shapes are those of the stock convolution.

        Args:
            x: Input.
            residual: Added to the output, of its shape.
        """
        y, decision = self._forward_compiled(x, residual) or self._forward(x, residual)
        report(self.layer_name, decision)
        return y

    def _forward_compiled(
        self, x: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, ChargedDecision] | None:
        if self.compiled is None:
            return None
        try:
            found = self.compiled.forward(self, x, residual)
        except FloatingPointError as error:
            raise FloatingPointError(f'{self.layer_name}: {error}') from error
        if found is None:
            return None
        y, charges = found
        return y, ChargedDecision(charges)

    def _forward(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, LayerDecision]:
        clips = self._to_clips(x)
        added = None if residual is None else self._to_clips(residual)
        options = len(self._frame_options(clips.shape[2]))
        answer = self._decide(clips, options)
        if self.forced is not None:
            answer = self.forced.replace(answer)
        y, decision = self.modulate(clips, answer, Epilogue(added, self.relu))
        # Of a gate of another class only its forward is known, not what that needs.
        learns = type(self.gate) is SoftModulationGate and self.forced is None
        if learns and torch.is_grad_enabled():
            decision = decision._replace(trained=(self.gate, *decision.trained))
        return self._from_clips(y), decision

    def _decide(self, clips: Tensor, options: int) -> Answer:
        fused = self.fused_gate
        gate = self.gate if fused is None or fused.is_watched() else fused
        return fetch(gate(clips, options))

    def num_options(self, x: Tensor) -> tuple[int, int]:
        """Numbers of channel and temporal options that an input leaves the layer."""
        return len(self.channel_options.kept), len(self._frame_options(self._to_clips(x).shape[2]))

    def modulate(
        self, clips: Tensor, weights: Answer | Modulation, epilogue: Epilogue = NOTHING
    ) -> tuple[Tensor, LayerDecision]:
        """Blend the options with given weights.

        All options come from one convolution, that of the dearest option that is on. Clips are
        grouped by their dearest options, and each group executes no more than its own.

        Args:
            clips: Input, (N, C_in, T, H, W).
            weights: Weights of the options.
            epilogue: What follows.

        Returns:
            Output (N, C_out, T', H', W'), and what was decided.
        """
        answer = fetch(weights) if isinstance(weights, Modulation) else weights
        y: Tensor | None = None
        trained: tuple[nn.Module, ...] = ()
        try:
            if self.compiled is not None:
                y = self.compiled.modulate(self, clips, answer.weights, epilogue)
            if y is None:
                groups = group_by_policy(answer.weights)
                y = self._execute_all(clips, answer, groups, epilogue)
                trained = self._trained(groups)
        except (FloatingPointError, ValueError) as error:
            raise type(error)(f'{self.layer_name}: {error}') from error
        return y, LayerDecision(answer, self._cost(clips.shape[2], y), trained)

    def _trained(self, groups: list[Group]) -> tuple[nn.Module, ...]:
        """Cheap operations that groups were executed with, if that has gradients."""
        if not torch.is_grad_enabled():
            return ()
        return tuple(
            options.cheap[i - 1]
            for options, active in (
                (self.channel_options, {i for group in groups for i in group.channel}),
                (self.temporal_options, {i for group in groups for i in group.temporal}),
            )
            for i in active
            if i
        )

    def _execute_all(
        self, clips: Tensor, answer: Answer, groups: list[Group], epilogue: Epilogue
    ) -> Tensor:
        if len(groups) == 1:
            shares = functools.partial(answer.shares, self.normalised)
            return self._execute(clips, groups[0], shares, epilogue)
        return epilogue(self._execute_groups(clips, answer, groups))

    def _execute_groups(self, clips: Tensor, answer: Answer, groups: list[Group]) -> Tensor:
        # Gathering a clip copies it; a run of its own reads all weights again.
        if not torch.is_grad_enabled() and clips[0].numel() > self.weight.numel():
            groups = consecutive(groups)
        rows = [group.rows for group in groups]

        @functools.cache
        def shares() -> list[Modulation]:
            parts = (divide(v, rows) for v in answer.shares(self.normalised))
            return [Modulation(*part) for part in zip(*parts, strict=True)]

        parts = (
            self._execute(part, group, lambda i=i: shares()[i])  # type: ignore[misc]
            for i, (part, group) in enumerate(zip(divide(clips, rows), groups, strict=True))
        )
        return assemble(parts, rows)

    def _execute(
        self,
        clips: Tensor,
        group: Group,
        shares: Callable[[], Modulation],
        epilogue: Epilogue = NOTHING,
    ) -> Tensor:
        """Execute a group's clips with one convolution, that of its dearest options.

        Args:
            clips: The group's.
            group: Which options are on.
            shares: Makes the shares of the group's clips, where options are blended.
            epilogue: What follows.
        """
        channel, temporal = group.channel[0], group.temporal[0]
        single = self.normalised and len(group.channel) == len(group.temporal) == 1
        if single and channel == temporal == 0:
            return self._whole(clips, epilogue)
        z = self._convolve(clips, channel, temporal)
        frames = self._output_frames(clips.shape[2])
        compiled = torch.is_grad_enabled() and self._blends_compiled(z)
        if single and self._affine and not compiled:
            factors = self._factors(channel, temporal, z.dtype)
            y = rebuild(z, *factors, frames)
            recompute.offer(y, rebuild, z, *factors, frames)
        else:
            parts = (None, None) if single else self._parts(shares(), group)
            y = self._blend(z, frames, parts, group)
            recompute.offer(y, self._blend, z, frames, parts, group)
        return epilogue(y)

    @property
    def _affine(self) -> bool:
        """Whether all cheap operations are."""
        return self.channel_options.affine and self.temporal_options.affine

    def _blends_compiled(self, z: Tensor) -> bool:
        """Whether compiled code blends what was computed."""
        possible = self.compiled_blend and self.normalised and self._affine
        return possible and compiled_blend.serves(z)

    def _blend(
        self, z: Tensor, frames: int, parts: Sequence[Tensor | None], group: Group
    ) -> Tensor:
        """Blend what a group's dearest options compute, with what :meth:`_parts` returned."""
        if self._blends_compiled(z):
            options = (self.channel_options, self.temporal_options)
            return compiled_blend.blend(z, options, parts, group[1:], frames)
        own, over = (None if part is None else part.to(z.dtype) for part in parts)
        y = self.channel_options(z, own, group.channel, self.normalised)
        return self.temporal_options(y, over, group.temporal, frames, self.normalised)

    def _parts(self, shares: Modulation, group: Group) -> list[Tensor | None]:
        """Shares of each dimension; None where one option has all, whatever its weight is."""
        active = zip(shares, group[1:], strict=True)
        return [
            None if self.normalised and len(options) == 1 else share for share, options in active
        ]

    def _factors(self, channel: int, temporal: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Scale and shift, (R, C), of what a pair of options rebuilds from what it computes."""
        channel_scale, channel_shift = self.channel_options.affine_factors(channel)
        scale, shift = self.temporal_options.affine_factors(temporal)
        shift = torch.addcmul(shift, scale, channel_shift)
        return (scale * channel_scale).to(dtype), shift.to(dtype)

    def _cost(self, frames: int, y: Tensor) -> LayerCost:
        """Cost of an output of clips with so many frames."""
        key = frames, y.shape[-2] * y.shape[-1]
        if (cost := self._costs.get(key)) is None:
            cost = layer_cost(self.constants, self._frame_options(frames), key[1])
            self._costs[key] = cost
        return cost

    def _frame_options(self, frames: int) -> tuple[int, ...]:
        return kept(self._output_frames(frames), self.temporal_options.num_options)

    def _whole(self, clips: Tensor, epilogue: Epilogue = NOTHING) -> Tensor:
        """The stock convolution, and what follows."""
        return self._filtered(clips, self._part(self.out_channels, 1), epilogue)

    def _convolve(self, clips: Tensor, channel: int, temporal: int) -> Tensor:
        """What a pair of options computes."""
        channels, stride = self.channel_options.kept[channel], 2**temporal
        if self.skip:
            return self._filtered(clips, self._part(channels, stride))
        every = self._filtered(clips, self._part(self.out_channels, 1))
        return every[:, :channels, ::stride]

    def _part(self, channels: int, temporal_stride: int) -> Part:
        return Part(self.weight, self.bias, channels, temporal_stride)

    def _filtered(self, x: Tensor, part: Part, epilogue: Epilogue = NOTHING) -> Tensor:
        """What a part of the layer computes, and what follows."""
        general = functools.partial(self._filter, x, part)
        if self.plans is None:
            return epilogue(general())
        return self.plans.convolve(x, part.weight, part.bias, part[2:], general, epilogue)

    def _filter(self, x: Tensor, part: Part, conv2d: Conv2d = F.conv2d) -> Tensor:
        weight, bias, channels, temporal_stride = part
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

    @property
    def clip_rows(self) -> int:
        """Rows of the input that are a clip."""
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

    @property
    def clip_rows(self) -> int:
        return 1

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

    @property
    def clip_rows(self) -> int:
        return self.num_segments

    def _to_clips(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[0] % self.num_segments:
            raise ValueError(
                f'{self.layer_name}: expected frames (N * {self.num_segments}, C, H, W), because '
                f'num_segments is {self.num_segments}, got {tuple(x.shape)}'
            )
        return as_clips(x, self.num_segments)

    def _from_clips(self, y: Tensor) -> Tensor:
        return as_frames(y)

    def _output_frames(self, frames: int) -> int:
        return frames


def _whole_groups(channels: int, per_group: int) -> Iterator[tuple[int, int]]:
    """Cut the first channels so that no cut crosses a group that is only begun."""
    whole = channels // per_group * per_group
    if whole:
        yield 0, whole
    if channels > whole:
        yield whole, channels
