# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Dynamic convolutions that have taken in the normalisation behind them, for inference."""

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .answer import Modulation
from .conv import DynamicConv2d, DynamicConv3d
from .groups import Group


def fold_norm(layer: DynamicConv2d | DynamicConv3d, norm: Any) -> None:
    """Fold a BatchNorm in evaluation mode into a layer, in place.

    The full policy takes folded kernels; a pair of options folds the normalisation into what it
    rebuilds, so that nothing divides by a factor that may be zero. The layer keeps both kernels.

    Args:
        layer: The dynamic convolution.
        norm: The BatchNorm that follows it, with running statistics.
    """
    with torch.no_grad():
        weight, bias = fuse_conv_bn_weights(
            layer.weight,
            layer.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        scale = torch.rsqrt(norm.running_var + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -norm.running_mean * scale
        shift = shift if norm.bias is None else shift + norm.bias
        made = FusedConv2d if isinstance(layer, DynamicConv2d) else FusedConv3d
        if layer.channel_options.affine and layer.temporal_options.affine:
            options = (len(layer.channel_options.kept), layer.temporal_options.num_options)
            for i, j in itertools.product(*map(range, options)):
                own_scale, own_shift = layer._factors(i, j, layer.weight.dtype)
                folded = torch.stack((own_scale * scale, own_shift * scale + shift))
                layer.register_buffer(f'factors_{i}_{j}', folded, persistent=False)
        layer.register_buffer('folded_weight', weight.detach(), persistent=False)
        layer.register_buffer('folded_bias', bias.detach(), persistent=False)
        spread = torch.stack((scale, shift)).view(2, 1, -1, 1, 1, 1)
        layer.register_buffer('norm', spread, persistent=False)
    layer.__class__ = made


class _FusedConv:
    """Mixin: what differs from the layer without its normalisation."""

    folded_weight: Tensor
    folded_bias: Tensor
    norm: Tensor

    def _whole(self, clips: Tensor) -> Tensor:
        weight, bias = self.folded_weight, self.folded_bias
        return self._filtered(clips, weight, bias, len(weight), 1)  # type: ignore[attr-defined]

    def _factors(self, channel: int, temporal: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        scale, shift = getattr(self, f'factors_{channel}_{temporal}').to(dtype)
        return scale, shift

    def _blend(self, clips: Tensor, z: Tensor, modulation: Modulation, group: Group) -> Tensor:
        y = super()._blend(clips, z, modulation, group)  # type: ignore[misc]
        scale, shift = self.norm.to(y.dtype)
        return torch.addcmul(shift, y, scale, out=None if torch.is_grad_enabled() else y)


class FusedConv3d(_FusedConv, DynamicConv3d):
    """A dynamic 3-D convolution with its normalisation."""


class FusedConv2d(_FusedConv, DynamicConv2d):
    """A dynamic 2-D convolution with its normalisation."""
