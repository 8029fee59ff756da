# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Convolutions of a fused network one after the other, with as little as possible between them."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .compiled import CompiledConv, execute
from .decision import ChargedDecision, report
from .joint import open_decision


def convolve_in_turn(stages: Sequence[nn.Module], x: Tensor, residual: Tensor) -> Tensor:
    """Call modules one after the other, by compiled code as far as there is some.

    What a convolution of small maps takes is little more than what its call takes in Python, so
    compiled code executes all that follow each other at once. Modules that have hooks, or a forward
    of their own, are called.

    Args:
        stages: Convolutions, and modules of any other kind.
        x: Input of the first, (N, C, T, H, W) or (N T, C, H, W).
        residual: What the last one adds to its output.
    """
    y, left = x, list(stages)
    while left:
        y, done = _execute(left, y, residual)
        left = left[done:]
        if left:
            stage = left.pop(0)
            y = stage(y) if left else stage(y, residual)
    return y


def _execute(stages: list[nn.Module], x: Tensor, residual: Tensor) -> tuple[Tensor, int]:
    """What compiled code makes of an input, and of how many stages."""
    if _has_any_global_hook():
        return x, 0
    layers: list[Any] = list(takewhile(_is_compiled, stages))
    if not layers:
        return x, 0
    added = residual if len(layers) == len(stages) else None
    try:
        found = execute([(layer, _answered(layer)) for layer in layers], x, added)
    except FloatingPointError:
        return x, 0  # called alone, the layer says its name
    for layer, charges in zip(layers, found.charges, strict=False):
        if charges:
            report(layer.layer_name, ChargedDecision(charges))
    return found.y, found.layers


def _is_compiled(stage: Any) -> bool:
    """Whether calling a module does nothing but what compiled code does."""
    if not isinstance(getattr(stage, 'compiled', None), CompiledConv):
        return False
    return not (stage._forward_hooks or stage._forward_pre_hooks or 'forward' in stage.__dict__)


def _answered(layer: Any) -> tuple[Tensor, int] | None:
    joint = open_decision(layer)
    return None if joint is None else joint.row(layer)
