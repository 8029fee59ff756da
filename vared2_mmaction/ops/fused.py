# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Dynamic convolutions of a fused network, which take in the normalisation behind them."""

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .cheap import PerChannelAffine
from .compiled import Kernels, Options
from .conv import DynamicConv2d, DynamicConv3d

AMPLIFICATION = 100
"""How far rounding errors of normalised maps may grow when other maps are rebuilt from them."""


def fold_norm(layer: DynamicConv2d | DynamicConv3d, norm: Any) -> bool:
    """Fold a BatchNorm in evaluation mode into a layer, in place, where that can be done.

    Shares have to sum to one, and cheap operations to be affine. Then the layer computes normalised
    maps, and each operation undoes the normalisation of the map that it reads; which must not
    divide by next to nothing.

    Args:
        layer: The dynamic convolution.
        norm: The BatchNorm that follows it, with running statistics.

    Returns:
        Whether it was folded. If not, it has to be called as ever.
    """
    channel, temporal = layer.channel_options, layer.temporal_options
    if not (layer.normalised and channel.affine and temporal.affine):
        return False
    with torch.no_grad():
        ones, zeros = channel.ones.to(norm.running_var), channel.zeros.to(norm.running_var)
        gain, offset = (
            own if given is None else given
            for own, given in ((ones, norm.weight), (zeros, norm.bias))
        )
        scale = torch.rsqrt(norm.running_var + norm.eps) * gain
        shift = offset - norm.running_mean * scale
        folded = _invertible(layer, scale, gain.abs() + offset.abs())
        if folded:
            layer.weight, layer.bias = fuse_conv_bn_weights(
                layer.weight,
                layer.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
            _fold_into_operations(layer, scale, shift)
        _tabulate(layer)
    layer.__class__ = FusedConv3d if isinstance(layer, DynamicConv3d) else FusedConv2d
    return folded


def _operations(layer: DynamicConv2d | DynamicConv3d) -> list[tuple[PerChannelAffine, Any, Any]]:
    """Operations that rebuild channels, with the channels they make and those they read."""
    channels = torch.arange(layer.out_channels, device=layer.weight.device)
    options = layer.channel_options
    return [
        (operation, channels[k:], channels[k:] % k)  # type: ignore[misc]
        for operation, k in zip(options.cheap, options.kept[1:], strict=True)
    ]


def _invertible(layer: DynamicConv2d | DynamicConv3d, scale: Tensor, sizes: Tensor) -> bool:
    """Whether the normalisation of maps that others are rebuilt from can be undone.

    Args:
        layer: The layer.
        scale: Factors of the normalisation, (C,).
        sizes: About how large normalised maps are, (C,).
    """
    limit = AMPLIFICATION * sizes.max()
    return all(
        (scale[made] * operation.weight * sizes[read]).abs().le(limit * scale[read].abs()).all()
        and (scale[read].ne(0) | scale[made].eq(0)).all()
        for operation, made, read in _operations(layer)
    )


def _fold_into_operations(
    layer: DynamicConv2d | DynamicConv3d, scale: Tensor, shift: Tensor
) -> None:
    """Let operations on normalised maps make normalised maps."""
    for operation, made, read in _operations(layer):
        # What is scaled to nothing is made from nothing: stock residual blocks start so.
        ratio = torch.where(scale[made] == 0, scale[made], scale[made] / scale[read])
        weight = operation.weight * ratio
        operation.bias.copy_(scale[made] * operation.bias + shift[made] - weight * shift[read])
        operation.weight.copy_(weight)
    operations: Any = layer.temporal_options.cheap
    for operation in operations:
        offsets = len(operation.weight) // len(scale)
        scales, shifts = scale.repeat(offsets), shift.repeat(offsets)
        operation.bias.copy_(scales * operation.bias + shifts * (1 - operation.weight))


def _tabulate(layer: DynamicConv2d | DynamicConv3d) -> None:
    """Keep, for every pair of options, the factors of what it rebuilds."""
    numbers = (len(layer.channel_options.kept), layer.temporal_options.num_options)
    for i, j in itertools.product(*map(range, numbers)):
        factors = torch.stack(layer._factors(i, j, layer.weight.dtype))
        layer.register_buffer(f'factors_{i}_{j}', factors, persistent=False)


class _Tabulated:
    """Mixin: factors of pairs of options are looked up."""

    def _factors(self, channel: int, temporal: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        scale, shift = self._table(channel, temporal).to(dtype)
        return scale, shift

    def _table(self, channel: int, temporal: int) -> Tensor:
        return getattr(self, f'factors_{channel}_{temporal}')

    def options(self: Any) -> Options:
        """What weights weigh; see :class:`~vared2_mmaction.ops.compiled.CompiledConv`."""
        kept, number = self.channel_options.kept, self.temporal_options.num_options
        tables = [[self._table(i, j) for j in range(number)] for i in range(len(kept))]
        constants = self.constants
        costs = (constants.kernel, *constants.macs_per_element, constants.gate)
        return Options(kept, tables, self.channel_options.multiple, costs)

    def kernels(self: Any) -> Kernels:
        """What is convolved with; see :class:`~vared2_mmaction.ops.compiled.CompiledConv`."""
        weight, stride, padding, dilation = self._in_3d(self.weight, self.padding)
        return Kernels(weight, self.bias, stride, padding, dilation)


class FusedConv3d(_Tabulated, DynamicConv3d):
    """A dynamic 3-D convolution whose factors are looked up."""


class FusedConv2d(_Tabulated, DynamicConv2d):
    """A dynamic 2-D convolution whose factors are looked up."""
