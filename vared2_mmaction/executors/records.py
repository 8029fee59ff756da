# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Write down a convolution for executors."""

from typing import Any

import torch
from torch import Tensor, nn

from ..ops import DynamicConv2d, DynamicConv3d
from .base import Choice, LayerRecord


def is_dynamic(conv: nn.Module) -> bool:
    """Whether a convolution is a dynamic one of the definition."""
    return isinstance(conv, DynamicConv2d | DynamicConv3d)


def record_of(conv: Any, name: str, relu: bool) -> LayerRecord | None:
    """The record of a convolution in 2-D or 3-D with normalisation folded, or None where only the
    definition says what it does.

    ``name`` is that in the network; ``relu``, whether ReLU follows at once.
    """
    if conv.padding_mode != 'zeros' or isinstance(conv.padding, str):
        return None
    rank = 3 if isinstance(conv, nn.Conv3d) else 2
    flat = rank == 2
    weight = conv.weight.detach()
    return LayerRecord(
        name=name,
        weight=weight.unsqueeze(2) if flat else weight,
        bias=None if conv.bias is None else conv.bias.detach(),
        stride=(1, *conv.stride) if flat else conv.stride,
        padding=(0, *conv.padding) if flat else conv.padding,
        dilation=(1, *conv.dilation) if flat else conv.dilation,
        groups=conv.groups,
        clip_rows=conv.num_segments if isinstance(conv, DynamicConv2d) else 1,
        rank=rank,
        relu=relu,
        choice=_choice(conv) if is_dynamic(conv) else None,
    )


@torch.no_grad()
def _choice(conv: Any) -> Choice:
    channel, temporal = map(range, conv.num_options)
    return Choice(
        gate=conv.gate,
        constants=conv.constants,
        in_use=conv.in_use,
        tables=tuple(tuple(_table(conv, i, j) for j in temporal) for i in channel),
    )


def _table(conv: Any, channel: int, temporal: int) -> Tensor:
    """Factors of what a pair of options rebuilds; see :class:`~.base.Choice`."""
    own = conv.channel_options.tables((channel,))[:, 0]
    over = conv.temporal_options.tables((temporal,))[:, 0]
    table = torch.stack((over[0] * own[0], over[1] + over[0] * own[1]))
    return table.to(conv.weight.dtype)
