# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Layers that compiled code executes one after the other, in one call."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .library import library


class Block(NamedTuple):
    """Layers that are executed one after the other, each by a
    :class:`~vared2_mmaction.executors.cpu.convolution.CpuConv`."""

    layers: Sequence[Any]
    """Of the type :class:`~vared2_mmaction.executors.ExecutedConv`."""
    beside: Sequence[Any] = ()
    """Layers that make what the last of the others adds; none add the input of the block."""
    adds: bool = True
    """Whether the last layer adds anything."""

    def executed(self) -> Iterator[Any]:
        """Layers in the order of their execution."""
        return itertools.chain(self.layers[:-1], self.beside, self.layers[-1:])

    def native(self, x: Tensor) -> Any:
        """The block as compiled code is told of it; None where it cannot be."""
        steps, beside = (
            [layer.executor.step(x, layer.forced) for layer in layers]
            for layers in (self.layers, self.beside)
        )
        if None in steps or None in beside:
            return None
        return library().Block(first=steps[:-1], beside=beside, last=steps[-1], adds=self.adds)


def execute(blocks: Sequence[Block], x: Tensor, residual: Tensor | None = None) -> Any:
    """Execute blocks one after the other, in one call, as far as there is compiled code.

    What a block makes and nobody else sees is overwritten by the next.

    Args:
        blocks: The blocks.
        x: Input of the first, (N, C, T, H, W) or (N T, C, H, W).
        residual: What the first block adds instead of its input, of the shape of its output.

    Returns:
        An object with the attributes ``blocks``, how many of them were executed as a whole; ``y``,
        the output of the last layer that was executed, not counting those beside others;
        ``entered``, the input of the first block that was not executed as a whole, or the output of
        the last; and ``charges`` of every layer that was executed.

    Raises:
        FloatingPointError: If weights of the first layer are not finite; one behind it is left.
        ValueError: If options are forced for another number of clips.
    """
    natives = (block.native(x) for block in blocks)
    told = list(itertools.takewhile(lambda one: one is not None, natives))
    return library().execute(told, x, residual)
