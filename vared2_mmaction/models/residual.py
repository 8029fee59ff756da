# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Residual blocks of a fused network, executed by compiled code in as few calls as can be.

What a convolution of small maps takes is little more than what its call takes in Python, and a map
that compiled code has made and no module was given can be overwritten by what follows it.
"""

from collections.abc import Iterable, Sequence
from itertools import chain, takewhile
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ..ops import DynamicConv2d, DynamicConv3d
from ..ops.chain import Block, execute
from ..ops.compiled import CompiledConv
from ..ops.decision import COLUMNS, ChargedDecision, Charges, report, report_fixed
from ..ops.watched import is_watched
from .dynamize import is_watched_by_others


class FusedResidual(nn.Module):
    """Mixin: a residual block whose last convolution adds the residual and applies ReLU.

    Modules between the block and its convolutions, which have nothing left to do, are not called.
    """

    stages: tuple[nn.Module, ...]
    """What is called one after the other."""
    beside: tuple[nn.Module, ...]
    """What makes the residual of the input, one after the other; none if it is the input."""
    between: tuple[nn.Module, ...]
    """Modules of the block that have nothing left to do, and are not called."""
    name: str
    around: tuple[nn.Module, ...]
    """Those of its downsampling branch that are not called where ``beside`` are."""

    def forward(self, x: Tensor) -> Tensor:
        downsample: Any = self.downsample
        if any(map(is_watched, self.between)):
            names = (n for n, m in self.named_modules() if m in self.between and is_watched(m))
            raise RuntimeError(
                f'{self.name}.{next(names)}: its hooks would not be called, because a fused block '
                'calls its convolutions alone: register them before the network is fused'
            )
        y = convolve_in_turn(self.stages, x, x if downsample is None else downsample(x))
        if getattr(self, 'non_local', False):
            y = self.non_local_block(y)  # type: ignore[operator]
        return y

    def block(self) -> Block | None:
        """The block for compiled code; None if it, or a part of it, is to be called."""
        downsample: Any = self.downsample
        parts = (self,) if downsample is None else (self, downsample)
        watched = map(is_watched_by_others, (*parts, *self.around, *self.between))
        if any(watched) or getattr(self, 'non_local', False):
            return None
        if not all(map(_is_compiled, (*self.stages, *self.beside))):
            return None
        return Block(self.stages, self.beside)


class FusedStage(nn.Module):
    """Mixin: a sequence of modules, of which residual blocks are executed by compiled code."""

    def forward(self, x: Tensor) -> Tensor:
        y = x
        left: list[Any] = list(self._modules.values())
        while left:
            y, done = _execute_blocks(left, y)
            left = left[done:]
            if left:
                y = left.pop(0)(y)
        return y


def convolve_in_turn(stages: Sequence[nn.Module], x: Tensor, residual: Tensor) -> Tensor:
    """Call modules one after the other, by compiled code as far as there is some.

    Modules that have hooks, or a forward of their own, are called.

    Args:
        stages: Convolutions, and modules of any other kind.
        x: Input of the first, (N, C, T, H, W) or (N T, C, H, W).
        residual: What the last one adds to its output.
    """
    y, left = x, list(stages)
    while left:
        y, done = _execute_layers(left, y, residual)
        left = left[done:]
        if left:
            stage = left.pop(0)
            y = stage(y) if left else stage(y, residual)
    return y


def _execute_blocks(modules: Sequence[Any], x: Tensor) -> tuple[Tensor, int]:
    """What compiled code makes of an input, and of how many modules."""
    blocks: list[Block] = []
    if not _has_any_global_hook():
        for module in modules:
            block = module.block() if isinstance(module, FusedResidual) else None
            if block is None:
                break
            blocks.append(block)
    if not blocks:
        return x, 0
    try:
        found = execute(blocks, x)
    except FloatingPointError:
        return x, 0  # called, the layer says its name
    whole = blocks[: found.blocks]
    _report(chain.from_iterable(block.executed() for block in whole), found.charges)
    return found.entered, found.blocks


def _execute_layers(stages: list[nn.Module], x: Tensor, residual: Tensor) -> tuple[Tensor, int]:
    """What compiled code makes of an input, and of how many stages."""
    layers = [] if _has_any_global_hook() else list(takewhile(_is_compiled, stages))
    if not layers:
        return x, 0
    block = Block(layers, adds=len(layers) == len(stages))
    try:
        found = execute([block], x, residual if block.adds else None)
    except FloatingPointError:
        return x, 0  # called, the layer says its name
    _report(layers, found.charges)
    return found.y, len(found.charges)


def _report(layers: Iterable[Any], charges: Iterable[Charges]) -> None:
    for layer, of in zip(layers, charges, strict=False):
        if isinstance(layer, DynamicConv2d | DynamicConv3d):
            report(layer.layer_name, ChargedDecision(of))
        elif layer._forward_hooks:  # see `_is_compiled`
            report_fixed(int(of[0][COLUMNS.index('executed')]))


def _is_compiled(module: Any) -> bool:
    """Whether calling a module does nothing but what compiled code does."""
    if not isinstance(getattr(module, 'compiled', None), CompiledConv):
        return False
    return not is_watched_by_others(module)
