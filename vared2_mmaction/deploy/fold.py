# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Fold normalisation into convolutions, cheap operations and gates, for inference."""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from mmaction.models.backbones.resnet_tsm import TemporalShift
from mmaction.models.common import Conv2plus1d
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights, fuse_linear_bn_weights

from ..models.dynamize import is_watched_by_others
from ..models.forms import is_convolution
from ..models.kinds import Convolution, TransposedConvolution
from ..ops import DynamicConv2d, DynamicConv3d, SoftModulationGate
from ..ops.cheap import PerChannelAffine
from ..watched import BATCH_NORMS, is_plain, is_watched

AMPLIFICATION = 100
"""How far rounding errors of normalised maps may grow when other maps are rebuilt from them."""
_NAMED_ALIKE = re.compile(r'conv(\w*) (?:bn|norm)\1$')


def fold_norms(network: nn.Module) -> None:
    """Fold every BatchNorm of a network in evaluation mode that can be, in place.

    A BatchNorm is folded where it is the ``norm`` of an mmcv ``ConvModule``, or is registered right
    behind its convolution in an ``nn.Sequential`` or under a name like that of it (``conv1`` and
    ``bn1``); and in gates.
    """
    for owner, name, norm_name in list(_pairs(network)):
        conv, norm = owner.get_submodule(name), owner.get_submodule(norm_name)
        if isinstance(conv, DynamicConv2d | DynamicConv3d):
            if not fold_norm(conv, norm):
                continue
        else:
            transposed = isinstance(conv, TransposedConvolution)
            folded: Any = fuse_conv_bn_eval(conv, norm, transposed)  # type: ignore[type-var, arg-type]
            conv.weight, conv.bias = folded.weight, folded.bias
        setattr(owner, norm_name, nn.Identity())
    for gate in network.modules():
        if isinstance(gate, SoftModulationGate):
            fold_norm_of_gate(gate)


def is_folded_norm(norm: nn.Module) -> bool:
    """Whether a module is a BatchNorm, synchronised or not, with running statistics and nothing
    else to it."""
    return is_plain(norm, *BATCH_NORMS) and norm.running_mean is not None


def fold_norm_of_gate(gate: SoftModulationGate) -> None:
    """Fold the normalisation of a gate into its first layer, in place; what is no BatchNorm of this
    kind, or is watched, stays."""
    bn: Any = gate.bn
    fc1 = gate.fc1
    if is_folded_norm(bn) and is_plain(fc1, nn.Linear) and fc1.bias is not None:
        applied = bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
        fc1.weight, fc1.bias = fuse_linear_bn_weights(fc1.weight, fc1.bias, *applied)
        gate.bn = nn.Identity()  # type: ignore[assignment]


def fold_norm(layer: DynamicConv2d | DynamicConv3d, norm: Any) -> bool:
    """Fold a BatchNorm in evaluation mode into a dynamic layer, in place; whether that can be done.

    The layer then computes normalised maps, and each cheap operation undoes the normalisation of
    the map that it reads; which must not divide by next to nothing.
    """
    with torch.no_grad():
        gain = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight
        offset = torch.zeros_like(norm.running_var) if norm.bias is None else norm.bias
        scale = torch.rsqrt(norm.running_var + norm.eps) * gain
        shift = offset - norm.running_mean * scale
        if not _invertible(layer, scale, gain.abs() + offset.abs()):
            return False
        applied = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        layer.weight, layer.bias = fuse_conv_bn_weights(layer.weight, layer.bias, *applied)
        _fold_into_operations(layer, scale, shift)
    return True


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

    ``scale``, (C,), are its factors; ``sizes``, (C,), about how large normalised maps are.
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


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Modules that own a convolution and the BatchNorm of its output, with the names of both."""
    for module in model.modules():
        if isinstance(module, ConvModule):
            pairs: Iterable[tuple[str, Any]] = []
            name = _last_convolution(module.conv)
            adjacent = ('conv', 'norm') in itertools.pairwise(module.order)
            if adjacent and module.with_norm and name is not None:
                pairs = [(f'conv{name}', module.norm_name)]
        else:
            pairs = itertools.pairwise(name for name, _ in module.named_children())
            if not isinstance(module, nn.Sequential):
                # What stands beside each other need not be called one after the other.
                pairs = (names for names in pairs if _NAMED_ALIKE.match(' '.join(names)))
        for conv_name, norm_name in pairs:
            conv, norm = module.get_submodule(conv_name), module.get_submodule(norm_name)
            if _foldable(norm, conv):
                yield module, conv_name, norm_name


def _last_convolution(conv: nn.Module) -> str | None:
    """Path, below the ``conv`` of a ConvModule, of the convolution whose output it returns."""
    if isinstance(conv, Convolution):
        return ''
    if is_watched(conv):
        return None
    if isinstance(conv, Conv2plus1d):
        return '.conv_t'
    return '.net' if isinstance(conv, TemporalShift) else None


def _foldable(norm: Any, conv: Any) -> bool:
    """Whether nobody sees what is between both; what is watched stays as it is."""
    return (
        is_convolution(conv)
        and not is_watched_by_others(conv)
        and is_folded_norm(norm)
        and norm.num_features == conv.out_channels
        and not (isinstance(conv, TransposedConvolution) and conv.groups > 1)
    )
