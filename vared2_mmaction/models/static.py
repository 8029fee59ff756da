# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The static network behind a dynamic one, and its cost."""

import copy
from collections.abc import Sequence

import torch
from mmaction.models.recognizers.base import BaseRecognizer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..ops import DynamicConv2d, DynamicConv3d
from .blocks import Deciding, stop_deciding
from .dynamize import OWN_PARTS, DynamicBackbone, report_convolution
from .forms import restore_stock_forms
from .heads import BudgetHead
from .neck import SoftModulationGateNeck


def to_static(model: nn.Module) -> nn.Module:
    """A copy of a model that is the stock network again, with the same weights."""
    static = copy.deepcopy(model)
    restore_stock_forms(static)
    for module in list(static.modules()):
        if isinstance(module, DynamicConv2d | DynamicConv3d):
            for part in OWN_PARTS:
                delattr(module, part)
            stock = nn.Conv2d if isinstance(module, DynamicConv2d) else nn.Conv3d
            module.__class__ = stock  # type: ignore[assignment]
        if isinstance(module, Deciding):
            stop_deciding(module)
        for mixin in (DynamicBackbone, BudgetHead):
            if isinstance(module, mixin):
                module.__class__ = _behind(mixin, type(module))
                module._modules.pop('loss_budget', None)
        for key in [k for k, hook in module._forward_hooks.items() if hook is report_convolution]:
            del module._forward_hooks[key]
        for name, child in list(module.named_children()):
            if isinstance(child, SoftModulationGateNeck):
                setattr(module, name, None)
    return static


def static_cost(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-adds of the static network, counted by ``torch.utils.flop_counter``.

    Nothing is computed: shapes run through the network on the meta device.

    Args:
        model: A dynamic or stock backbone or recognizer.
        input_shape: Shape of its input, (N, C, T, H, W) or (N T, C, H, W) for a backbone,
            (N, views, C, T, H, W) or (N, T, C, H, W) for a recognizer. Leading dimensions that
            are missing are one clip.

    Raises:
        ValueError: If the shape has too many or too few dimensions.
    """
    static = to_static(model).to('meta')
    static.eval()  # does not return the module in stock backbones
    x = torch.empty(_full_shape(static, tuple(input_shape)), device='meta')
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if isinstance(static, BaseRecognizer):
            static.test_cfg = None  # one pass over the whole input, not in chunks of views
            feats, kwargs = static.extract_feat(x, test_mode=True)
            static.cls_head(feats, **kwargs)
        else:
            static(x)
    return counter.get_total_flops() // 2


def _full_shape(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    recognizer = isinstance(model, BaseRecognizer)
    backbone = model.backbone if isinstance(model, BaseRecognizer) else model
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


def _behind(mixin: type, derived: type) -> type:
    """The first class behind a mixin."""
    order = derived.__mro__
    return order[order.index(mixin) + 1]
