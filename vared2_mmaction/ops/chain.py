# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Layers of a fused network that compiled code executes one after the other, in one call."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .decision import Charges
from .library import library


class Block(NamedTuple):
    """Layers that are executed one after the other, each with a
    :class:`~vared2_mmaction.ops.compiled.CompiledConv`."""

    layers: Sequence[Any]
    beside: Sequence[Any] = ()
    """Layers that make what the last of the others adds; none add the input of the block."""
    adds: bool = True
    """Whether the last layer adds anything."""

    def executed(self) -> Iterator[Any]:
        """Layers in the order of their execution."""
        return itertools.chain(self.layers[:-1], self.beside, self.layers[-1:])

    def told(self, x: Tensor) -> tuple | None:
        """The block as compiled code is told of it; None where it cannot be."""
        steps, beside = (
            [layer.compiled.step(layer, x) for layer in layers]
            for layers in (self.layers, self.beside)
        )
        if None in steps or None in beside:
            return None
        return steps[:-1], beside, steps[-1], self.adds


class Executed(NamedTuple):
    """What blocks made of an input, one after the other."""

    blocks: int
    """How many of them were executed as a whole."""
    y: Tensor
    """Output of the last layer that was executed, not counting those beside others."""
    entered: Tensor
    """Input of the first block that was not executed as a whole, or output of the last."""
    charges: Sequence[Charges]
    """What every layer that was executed charges the clips; a stock convolution all as one."""
    missing: tuple[int, ...] | None
    """What the next layer has to plan first."""


def execute(blocks: Sequence[Block], x: Tensor, residual: Tensor | None = None) -> Executed:
    """Execute blocks one after the other, in one call, as far as there is compiled code.

    What a block makes and nobody else sees is overwritten by the next.

    Args:
        blocks: The blocks.
        x: Input of the first, (N, C, T, H, W) or (N T, C, H, W).
        residual: What the first block adds instead of its input, of the shape of its output.

    Raises:
        FloatingPointError: If weights of the first layer are not finite; one behind it is left.
        ValueError: If options are forced for another number of clips.
    """
    told = list(itertools.takewhile(lambda one: one is not None, (b.told(x) for b in blocks)))
    if not told:
        return Executed(0, x, x, (), None)
    return Executed(*library().execute(told, x, residual))
