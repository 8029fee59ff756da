# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Let convolutions of a fused network do what follows them: residual addition and ReLU."""

from collections.abc import Iterable
from typing import Any

from mmaction.models.backbones.resnet import BasicBlock, Bottleneck
from mmaction.models.backbones.resnet3d import BasicBlock3d, Bottleneck3d
from mmaction.models.common import Conv2plus1d
from mmcv.cnn import ConvModule
from mmengine.model import Sequential
from torch import nn

from ..ops import DynamicConv2d, DynamicConv3d
from ..ops.watched import is_plain, is_watched, runs
from .blocks import insert_mixin, parts_of
from .dynamize import is_watched_by_others
from .forms import FormedConv2d, FormedConv3d
from .residual import FusedResidual, FusedStage

# Exact types: what another one's forward does is not known.
_BLOCKS = (BasicBlock, Bottleneck, BasicBlock3d, Bottleneck3d)
_STAGES = (nn.Sequential, Sequential)


def fuse_epilogues(model: nn.Module) -> None:
    """Move ReLU and residual addition into the convolutions before them, in place.

    Args:
        model: In evaluation mode, with normalisation folded.
    """
    modules = list(model.modules())
    for module in modules:
        if isinstance(module, Conv2plus1d):
            _take_relu(module, 'relu', (module.conv_s,) if _idle(module.bn_s) else ())
    for module in modules:
        if isinstance(module, ConvModule) and module.with_activation:
            _take_relu(module, 'activate', _stages(module, activated=False))
    for name, module in list(model.named_modules()):
        if type(module) in _STAGES:
            _fuse_stage(module, name)


def _take_relu(owner: nn.Module, name: str, stages: tuple[nn.Module, ...]) -> None:
    """Let the last stage apply an owner's ReLU, if there are stages and it can."""
    conv: Any = stages[-1] if stages else None
    if is_plain(getattr(owner, name), nn.ReLU) and _takes_epilogue(conv):
        conv.relu = True
        setattr(owner, name, nn.Identity())


def _fuse_stage(stage: nn.Module, name: str) -> None:
    """Fuse the residual blocks of a sequence, which calls them; others, such as those of TANet,
    may be taken apart by what they are in."""
    for child, block in stage.named_children():
        _fuse_residual(block, f'{name}.{child}')
    if any(isinstance(block, FusedResidual) for block in stage.children()):
        insert_mixin(stage, FusedStage)


def _fuse_residual(block: Any, name: str) -> None:
    if parts_of(type(block))[-1] not in _BLOCKS or not is_plain(block.relu, nn.ReLU):
        return
    modules = [getattr(block, name, None) for name in ('conv1', 'conv2', 'conv3')]
    stages = tuple(stage for module in modules if module is not None for stage in _stages(module))
    last: Any = stages[-1]
    between = _between(modules, stages)
    if _takes_epilogue(last) and not last.relu and not any(map(is_watched, between)):
        last.relu, block.relu, block.stages = True, nn.Identity(), stages
        downsample = block.downsample
        block.beside = () if downsample is None else _stages(downsample)
        block.name, block.between = name, (block.relu, *between)
        block.around = () if downsample is None else _between([downsample], block.beside)
        insert_mixin(block, FusedResidual)


def _between(modules: Iterable[Any], stages: tuple[nn.Module, ...]) -> tuple[nn.Module, ...]:
    """Modules that are not called where their stages are, one after the other."""
    called = {inner for stage in stages for inner in stage.modules()}
    every = (inner for module in modules if module is not None for inner in module.modules())
    return tuple(inner for inner in every if inner not in called)


def _stages(module: Any, activated: bool = True) -> tuple[nn.Module, ...]:
    """Modules that do, one after the other, what a module does.

    Args:
        module: A ConvModule or what it contains.
        activated: Whether to include its activation.
    """
    if (
        isinstance(module, Conv2plus1d)
        and _idle(module.bn_s, module.relu)
        and not is_watched(module)
    ):
        return module.conv_s, module.conv_t
    if isinstance(module, ConvModule) and module.order == ('conv', 'norm', 'act'):
        norm = module.norm if module.with_norm else None
        activation = module.activate if activated and module.with_activation else None
        if _idle(norm, activation) and not module.with_explicit_padding:
            return _stages(module.conv)
    return (module,)


def _idle(*modules: Any) -> bool:
    return all(module is None or type(module) is nn.Identity for module in modules)


def _takes_epilogue(conv: Any) -> bool:
    kinds = DynamicConv2d, DynamicConv3d, FormedConv2d, FormedConv3d
    return runs(conv, *kinds) and not is_watched_by_others(conv)
