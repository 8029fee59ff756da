# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What an executor is told of a convolution, what it answers, and which executors there are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..ops.cost import Decision, LayerConstants
from ..ops.options import Options


@dataclass(frozen=True, eq=False)
class Choice:
    """What a dynamic convolution can choose from."""

    gate: nn.Module
    """Maps (input clips (N, C, T, H, W), number of temporal options) to a
    :class:`~vared2_mmaction.ops.Modulation` over all options; with BatchNorm folded where that can
    be."""
    constants: LayerConstants
    """What of its cost depends on no input; ``channels`` are those that each option computes."""
    in_use: Options
    """Options in use; others have no weight, whatever the gate says."""
    tables: tuple[tuple[Tensor, ...], ...]
    """Factors (2, 2^j, C) of each channel option i and temporal option j, in use or not: scale and
    shift of what the pair rebuilds. Channel c of output frame t is
    ``scale[t mod 2^j, c] * z[c mod k_i, t div 2^j] + shift[t mod 2^j, c]``, where z are the first
    k_i channels of every 2^j-th output frame of the convolution, with its bias; its own channels
    and frames have scale one and shift zero."""


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """A convolution of known weights, with normalisation folded, whose padding is with zeros.

    Sizes are those of a convolution in 3-D, (time, height, width).
    """

    name: str
    weight: Tensor
    """(C', C / groups, k_t, k_h, k_w)."""
    bias: Tensor | None
    stride: tuple[int, int, int]
    padding: tuple[int, int, int]
    dilation: tuple[int, int, int]
    groups: int
    clip_rows: int
    """Rows of the input that are a clip: 1 in 3-D, where the input is (N, C, T, H, W); the number
    of frames T in 2-D, where it is (N T, C, H, W); 1 for a stock convolution in 2-D."""
    rank: int
    """Dimensions of the convolution as the network has it: 2 or 3."""
    relu: bool
    """Whether ReLU follows at once."""
    choice: Choice | None = None
    """None for a stock convolution."""

    def output_frames(self, frames: int) -> int:
        """Number of output frames of an input of so many."""
        extent = self.dilation[0] * (self.weight.shape[2] - 1) + 1
        return (frames + 2 * self.padding[0] - extent) // self.stride[0] + 1


Charges = Tensor | Decision | int
"""What a layer charges: each clip, (N, 5) in float64 with the columns of
``vared2_mmaction.ops.COLUMNS``; or a decision, which the backbone charges with those of other
layers; a stock convolution its multiply-adds for the whole batch."""


class Executor(Protocol):
    """Executes one convolution; made of its :class:`LayerRecord`."""

    def __call__(
        self, x: Tensor, residual: Tensor | None = None, forced: Tensor | None = None
    ) -> tuple[Tensor, Charges] | None:
        """Decide, convolve, rebuild, mix, add a residual and apply ReLU.

        Args:
            x: Input, (N, C, T, H, W) or (N T, C, H, W).
            residual: Added to the output, of its shape.
            forced: Options, (N or 1, 2), that take the place of the gate's decision; clamped to the
                cheapest option in use that there is.

        Returns:
            The output and what it is charged; None for an input that is not served, with gradients
            for example, which the eager executor then is asked for.

        Raises:
            FloatingPointError: If weights are not finite; the module adds the name of the layer.
            ValueError: If options are forced for another number of clips.
        """
        ...


@dataclass(frozen=True)
class Backend:
    """An executor by its name, and what it is for."""

    name: str
    label: str
    """What executes, for the user: ``cpu (C++)``."""
    is_available: Callable[[], bool]
    """Whether it can execute anything here."""
    make: Callable[[LayerRecord], Executor | None]
    """Executor of a convolution; None where it cannot serve that."""
    prepare: Callable[[], Any] = lambda: None
    """Called before anything is executed; raises a RuntimeError that says what is missing."""
    by_clip: bool = True
    """Whether each clip is computed by its own policy; if not, all are by the dearest options in
    use."""


BACKENDS: dict[str, Backend] = {}
"""Executors beside the eager one, by the type of the device that they are for: the name of a
backend is that of its device."""


def register(backend: Backend) -> None:
    """Let ``optimize`` choose an executor on the device whose name it has."""
    BACKENDS[backend.name] = backend


def leaves_python() -> bool:
    """Whether operations are recorded for use without this package."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()
