# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The static network behind a dynamic one, and its cost."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from mmaction.models.recognizers.base import BaseRecognizer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..checkpoints.loading import OWN_PARTS
from ..ops import DynamicConv2d, DynamicConv3d
from .dynamize import DynamicBackbone, report_convolution
from .forms import restore_stock_forms
from .heads import BudgetPart
from .neck import SoftModulationGateNeck
from .policy import dynamic_layers
from .wrapped import unwrapped, without_parametrizations


def to_static(model: nn.Module) -> nn.Module:
    """A copy of a model that is the stock network again, with the same weights."""
    refuse_optimized(model)
    static = without_parametrizations(copy.deepcopy(unwrapped(model)))
    restore_stock_forms(static)
    for module in list(static.modules()):
        if isinstance(module, DynamicConv2d | DynamicConv3d):
            for part in OWN_PARTS:
                delattr(module, part)
            stock = nn.Conv2d if isinstance(module, DynamicConv2d) else nn.Conv3d
            module.__class__ = stock  # type: ignore[assignment]
        for mixin in (DynamicBackbone, BudgetPart):
            if isinstance(module, mixin):
                order = type(module).__mro__
                module.__class__ = order[order.index(mixin) + 1]
                module._modules.pop('loss_budget', None)
        for key in [k for k, hook in module._forward_hooks.items() if hook is report_convolution]:
            del module._forward_hooks[key]
        for name, child in list(module.named_children()):
            if isinstance(child, SoftModulationGateNeck):
                setattr(module, name, None)
    return static


def refuse_optimized(model: nn.Module) -> None:
    """Raise a ValueError if a dynamic model is what ``optimize`` returned."""
    if any(hasattr(layer, 'executed_by') for layer in dynamic_layers(model).values()):
        raise ValueError('expected the network that optimize was given, got its optimised copy')


def static_cost(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-adds of the static network, counted by ``torch.utils.flop_counter``.

    Nothing is computed: shapes run through the network on the meta device.

    Args:
        model: A dynamic or stock backbone, recognizer or detector; of a detector's head, one box.
        input_shape: Shape of its input, (N, C, T, H, W) or (N T, C, H, W) for a backbone,
            (N, views, C, T, H, W) or (N, T, C, H, W) for a recognizer, (N, C, T, H, W) for a
            detector. Leading dimensions that are missing are one clip.

    Raises:
        ValueError: If the shape has too many or too few dimensions.
    """
    static = to_static(model).to('meta')
    static.eval()  # does not return the module in stock backbones
    x = torch.empty(_full_shape(static, tuple(input_shape)), device='meta')
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if isinstance(static, BaseRecognizer) or is_detector(static):
            run_once(static, x)
        else:
            static(x)
    return counter.get_total_flops() // 2


def is_detector(model: nn.Module) -> bool:
    """Whether a model is a detector, of mmdet, which need not be installed."""
    return hasattr(model, 'roi_head')


def run_once(model: Any, x: Tensor) -> None:
    """The forward pass of a recognizer or detector whose multiply-adds are counted.

    A detector's head classifies one box: how many there are in a clip is not the network's choice.
    """
    if is_detector(model):
        model.extract_feat(x)
        head = model.roi_head.bbox_head
        # What is cut out of the features is pooled to this size first thing.
        head(x.new_zeros(1, head.in_channels, 1, 1, 1))
        return
    test_cfg, model.test_cfg = model.test_cfg, None  # one pass, not in chunks of views
    try:
        feats, kwargs = model.extract_feat(x, test_mode=True)
    finally:
        model.test_cfg = test_cfg
    model.cls_head(feats, **kwargs)


def _full_shape(model: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    recognizer = isinstance(model, BaseRecognizer)
    backbone = model.backbone if recognizer or is_detector(model) else model
    volumes = any(isinstance(module, nn.Conv3d) for module in backbone.modules())
    rank = (5 if volumes else 4) + recognizer
    segments = 1 if volumes else getattr(backbone, 'num_segments', None) or 1
    clip = ((1, segments) if recognizer else (segments,)) if not volumes else (1, 1)[: rank - 4]
    missing = rank - len(shape)
    if not 0 <= missing <= len(clip):
        raise ValueError(
            f'input_shape={shape}: expected {rank} dimensions for {type(model).__name__}, of which '
            f'the first {len(clip)} may be left out'
        )
    return (*clip[:missing], *shape)
