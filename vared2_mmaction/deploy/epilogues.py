# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Let executed convolutions do what follows them: residual addition and ReLU."""

from collections import OrderedDict
from typing import Any

from mmaction.models.backbones.resnet import BasicBlock, Bottleneck
from mmaction.models.backbones.resnet3d import BasicBlock3d, Bottleneck3d
from mmaction.models.common import Conv2plus1d
from mmcv.cnn import ConvModule
from mmengine.model import Sequential
from torch import nn

from ..executors import ExecutedConv
from ..models.blocks import parts_of
from ..watched import is_plain, is_watched
from .blocks import ExecutedBlock, ExecutedStage

# Exact types: what another one's forward does is not known.
_BLOCKS = (BasicBlock, Bottleneck, BasicBlock3d, Bottleneck3d)
_STAGES = (nn.Sequential, Sequential)


def take_relus(network: nn.Module) -> None:
    """Move ReLU into the executed convolutions before it, in place."""
    modules = list(network.modules())
    for module in modules:
        if isinstance(module, Conv2plus1d):
            _take_relu(module, 'relu', (module.conv_s,) if _idle(module.bn_s) else ())
    for module in modules:
        if isinstance(module, ConvModule) and module.with_activation:
            _take_relu(module, 'activate', _stages(module, activated=False))


def execute_blocks(network: nn.Module) -> None:
    """Swap residual blocks, and the stages that they are in, in place, after :func:`take_relus`.

    Only those of a sequence, which calls them: others, such as those of TANet, may be taken apart
    by what they are in. What is watched is left as it is, and called.
    """
    for name, stage in list(network.named_modules()):
        if type(stage) not in _STAGES:
            continue
        for child, block in stage.named_children():
            executed = _executed_block(block, f'{name}.{child}')
            if executed is not None:
                setattr(stage, child, executed)
        blocks = (isinstance(block, ExecutedBlock) for block in stage.children())
        if any(blocks) and name and not is_watched(stage):
            owner, _, attribute = name.rpartition('.')
            swapped = ExecutedStage(OrderedDict(stage.named_children()))
            swapped.train(stage.training)
            setattr(network.get_submodule(owner), attribute, swapped)


def _take_relu(owner: nn.Module, name: str, stages: tuple[nn.Module, ...]) -> None:
    """Let the last stage apply an owner's ReLU, if there are stages and it can."""
    conv: Any = stages[-1] if stages else None
    if is_plain(getattr(owner, name), nn.ReLU) and _takes_epilogue(conv):
        conv.take_relu()
        setattr(owner, name, nn.Identity())


def _executed_block(block: Any, name: str) -> ExecutedBlock | None:
    """The module that takes the place of a residual block, or None."""
    if parts_of(type(block))[-1] not in _BLOCKS or not is_plain(block.relu, nn.ReLU):
        return None
    modules = [getattr(block, name, None) for name in ('conv1', 'conv2', 'conv3')]
    stages = tuple(stage for module in modules if module is not None for stage in _stages(module))
    called = {inner for stage in stages for inner in stage.modules()}
    inner = (m for module in modules if module is not None for m in module.modules())
    watched = is_watched(block, *(m for m in inner if m not in called))
    last: Any = stages[-1]
    if watched or not _takes_epilogue(last) or last.relu:
        return None
    last.take_relu()
    block.relu = nn.Identity()
    beside = () if block.downsample is None else _stages(block.downsample)
    return ExecutedBlock(block, name, stages, beside)


def _stages(module: Any, activated: bool = True) -> tuple[nn.Module, ...]:
    """Modules that do, one after the other, what a ConvModule or a part of one does; its activation
    last, or left out."""
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
    return isinstance(conv, ExecutedConv) and not is_watched(conv)
