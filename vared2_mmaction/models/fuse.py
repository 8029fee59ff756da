# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Fold normalisation into what is before it, for inference."""

import copy
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from mmaction.models.backbones.resnet_tsm import TemporalShift
from mmaction.models.common import Conv2plus1d
from mmcv.cnn import ConvModule
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..ops import DynamicConv2d, DynamicConv3d, SoftModulationGate
from ..ops.fused import fold_norm
from ..ops.fused_gate import FusedGate
from ..ops.gate import is_folded_norm
from ..ops.watched import is_watched
from .dynamize import is_watched_by_others
from .epilogues import fuse_epilogues
from .execution import Execution, by_operations, execution_on
from .forms import FORMATS, is_convolution, keep_channels_last, pack_kernels
from .kinds import Convolution, TransposedConvolution
from .policy import dynamic_layers
from .wrapped import backbone_of, unwrapped, without_parametrizations


def fuse(model: nn.Module, compiled: bool | Execution = False) -> nn.Module:
    """A copy of a model for inference, with BatchNorm folded into convolutions, cheap operations
    and gates, and with ReLU and residual addition done by the convolutions before them.

    A BatchNorm is folded where it is the ``norm`` of an mmcv ``ConvModule``, or is registered right
    behind its convolution, as MMEngine's and mmcv's own fusion take it. It stays behind dynamic
    layers whose cheap operations are not affine, whose weights are not normalised, or whose maps
    rebuild others and are scaled to next to nothing. Parameters of the copy differ from those of a
    checkpoint: load first, then fuse. On a CPU, the convolutions of dynamic layers and of networks
    that were accelerated also keep their kernels packed for oneDNN.

    What has hooks when the model is fused is called as ever, and so are convolutions and norms with
    a forward of their own. Parametrisations (weight norm) become plain weights. A wrapper
    (``DistributedDataParallel``, an average of weights) is taken for what it wraps.

    Args:
        model: A stock or dynamic recognizer or backbone, on the device where it is to run.
        compiled: Whether gates and convolutions are to be executed by compiled code. On a CPU this
            is C++, for float32 (:mod:`vared2_mmaction.ops.compiled`); the first time it is
            compiled, which takes about half a minute. On a GPU these are Triton kernels, which
            leave out what a clip does not need without asking the host
            (:mod:`vared2_mmaction.ops.gpu`); the first call of a shape compiles and measures them.
            An :class:`~vared2_mmaction.models.execution.Execution` says itself what executes them.

    Returns:
        A copy in evaluation mode, whose outputs are those of the model in evaluation mode, up to
        rounding.

    Raises:
        RuntimeError: If compiled code is asked for and cannot be made.
    """
    model = unwrapped(model)
    if isinstance(compiled, Execution):
        execution = compiled
    else:
        device = next((p.device for p in model.parameters()), torch.device('cpu'))
        execution = execution_on(device) if compiled else by_operations()
    fused = without_parametrizations(copy.deepcopy(model))
    fused.eval()  # does not return the module in stock backbones
    for owner, name, norm_name in list(_pairs(fused)):
        conv, norm = owner.get_submodule(name), owner.get_submodule(norm_name)
        if isinstance(conv, DynamicConv2d | DynamicConv3d):
            if not fold_norm(conv, norm):
                continue
        else:
            transposed = isinstance(conv, TransposedConvolution)
            folded: Any = fuse_conv_bn_eval(conv, norm, transposed)  # type: ignore[type-var, arg-type]
            conv.weight, conv.bias = folded.weight, folded.bias
        setattr(owner, norm_name, nn.Identity())
    for gate in fused.modules():
        if isinstance(gate, SoftModulationGate):
            gate.fold_norm()
    fuse_epilogues(fused)
    for layer in dynamic_layers(fused).values():
        if isinstance(layer.gate, SoftModulationGate) and layer.gate.can_fuse():
            layer.fused_gate = FusedGate(layer.gate, execution.gate())
    keep_channels_last(fused)
    pack_kernels(fused, execution.convolution)
    if execution.innermost:
        backbone_of(fused).register_forward_pre_hook(_lay_out)
    return fused


def _lay_out(module: nn.Module, args: tuple) -> tuple:
    x = args[0]
    return (x.contiguous(memory_format=FORMATS[x.dim()]), *args[1:])


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
