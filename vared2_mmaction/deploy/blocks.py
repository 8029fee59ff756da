# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Residual blocks of an optimised network, executed in as few calls as can be.

What a convolution of small maps takes is little more than what its call takes in Python, and a map
that compiled code has made and no module was given can be overwritten by what follows it.
"""

from collections.abc import Iterable, Sequence
from itertools import chain, takewhile
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ..executors import ExecutedConv
from ..executors.base import Charges, leaves_python
from ..executors.cpu.blocks import Block, execute
from ..executors.cpu.convolution import CpuConv
from ..watched import is_watched


class ExecutedBlock(nn.Module):
    """A residual block whose last convolution adds the residual and applies ReLU.

    Its children have the names that they have in the stock block. Modules between the block and its
    convolutions, which have nothing left to do, are not called.

    Args:
        block: The stock block.
        name: Its name in the network.
        stages: What of the block is called one after the other.
        beside: What makes the residual of the input, one after the other; none if it is the input.
    """

    def __init__(
        self, block: Any, name: str, stages: Sequence[nn.Module], beside: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        for child_name, child in block.named_children():
            self.add_module(child_name, child)
        self.name = name
        self.stages, self.beside = tuple(stages), tuple(beside)
        self.non_local = getattr(block, 'non_local', False)
        downsample = [] if block.downsample is None else [block.downsample]
        if not downsample:
            self.downsample = None
        main = (m for n, m in self.named_children() if n not in ('downsample', 'non_local_block'))
        self._between = _between(main, self.stages)
        self._around = _between(downsample, self.beside)
        self.train(block.training)

    def forward(self, x: Tensor) -> Tensor:
        """Execute the block; (N, C, T, H, W) or (N T, C, H, W).

        Raises:
            RuntimeError: If there are hooks that would not be called.
        """
        if is_watched(*self._between):
            names = (n for n, m in self.named_modules() if m in self._between and is_watched(m))
            raise RuntimeError(
                f'{self.name}.{next(names)}: its hooks would not be called, because an optimised '
                'block calls its convolutions alone: register them before the network is optimised'
            )
        downsample: Any = self.downsample
        y = execute_in_turn(self.stages, x, x if downsample is None else downsample(x))
        if self.non_local:
            y = self.non_local_block(y)  # type: ignore[operator]
        return y

    def compiled(self) -> Block | None:
        """The block for compiled code; None if it, or a part of it, is to be called."""
        downsample: Any = self.downsample
        parts = (self,) if downsample is None else (self, downsample)
        if self.non_local or is_watched(*parts, *self._around, *self._between):
            return None
        if not all(map(_is_compiled, (*self.stages, *self.beside))):
            return None
        return Block(self.stages, self.beside)


class ExecutedStage(nn.Sequential):
    """A sequence of modules, of which residual blocks are executed by compiled code together."""

    def forward(self, x: Tensor) -> Tensor:
        """Execute the stage; (N, C, T, H, W) or (N T, C, H, W)."""
        left: list[Any] = list(self._modules.values())
        while left:
            x, done = _execute_blocks(left, x)
            left = left[done:]
            if left:
                x = left.pop(0)(x)
        return x


def execute_in_turn(stages: Sequence[nn.Module], x: Tensor, residual: Tensor) -> Tensor:
    """Call modules one after the other, by compiled code as far as there is some.

    ``x``, (N, C, T, H, W) or (N T, C, H, W), goes into the first; the last one adds ``residual`` to
    its output. Modules that have hooks, or a forward of their own, are called.
    """
    y, done = x, 0
    while done < len(stages):
        y, executed = _execute_layers(stages[done:], y, residual)
        done += executed
        if done < len(stages):
            stage, done = stages[done], done + 1
            y = stage(y) if done < len(stages) else stage(y, residual)
    return y


def _between(modules: Iterable[Any], stages: Sequence[nn.Module]) -> tuple[nn.Module, ...]:
    """Modules that are not called where their stages are, one after the other."""
    called = {inner for stage in stages for inner in stage.modules()}
    return tuple(inner for m in modules for inner in m.modules() if inner not in called)


def _execute_blocks(modules: Sequence[Any], x: Tensor) -> tuple[Tensor, int]:
    """What compiled code makes of an input, and of how many modules."""
    compiled = (m.compiled() if isinstance(m, ExecutedBlock) else None for m in modules)
    blocks: list[Any] = list(takewhile(bool, compiled))
    if (found := _execute(blocks, x)) is None:
        return x, 0
    _report(chain.from_iterable(b.executed() for b in blocks[: found.blocks]), found.charges)
    return found.entered, found.blocks


def _execute_layers(stages: Sequence[nn.Module], x: Tensor, residual: Tensor) -> tuple[Tensor, int]:
    """What compiled code makes of an input, and of how many stages."""
    layers = list(takewhile(_is_compiled, stages))
    if not layers:
        return x, 0
    adds = len(layers) == len(stages)
    if (found := _execute([Block(layers, adds=adds)], x, residual if adds else None)) is None:
        return x, 0
    _report(layers, found.charges)
    return found.y, len(found.charges)


def _execute(blocks: list[Block], x: Tensor, residual: Tensor | None = None) -> Any:
    """What compiled code answers; None if modules are to be called."""
    if not blocks or _has_any_global_hook() or leaves_python():
        return None
    try:
        return execute(blocks, x, residual)
    except FloatingPointError:
        return None  # called, the layer says its name


def _report(layers: Iterable[Any], charges: Iterable[Charges]) -> None:
    for layer, of in zip(layers, charges, strict=False):
        layer.report(of)


def _is_compiled(module: Any) -> bool:
    """Whether calling a module does nothing but what compiled code does."""
    return (
        isinstance(module, ExecutedConv)
        and isinstance(module.executor, CpuConv)
        and not is_watched(module)
    )
