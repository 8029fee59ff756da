# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Convolutions and gates of a fused network in C++, for float32 clips on a CPU.

What a layer does beside its convolution is little, and in Python that little takes longer than a
convolution of small maps: the gate, the grouping of clips, the views for oneDNN. Here all of it is
done by ``native/*.cpp``, which also convolve tile by tile, where the processor has the products for
that, and write each output element once: blended or rebuilt, with the residual added and ReLU
applied. What follows each other is executed by one call; see :mod:`.chain`.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import packed
from .answer import Weights
from .chain import Block, execute
from .decision import Charges
from .epilogue import Epilogue
from .forms import convolve, has_2d_form
from .gate import GRID
from .lazy import Made
from .library import library
from .packed import Version, version_of


class Kernels(NamedTuple):
    """An ungrouped convolution in 3-D, with zeros around its input."""

    weight: Tensor
    """(C', C, k_t, k_h, k_w)."""
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


class Options(NamedTuple):
    """What a layer rebuilds, and what that costs."""

    kept: Sequence[int]
    """Channels that each channel option computes."""
    tables: Sequence[Sequence[Tensor]]
    """Factors (2, 2^j, C) of each channel option i and temporal option j: scale and shift of what
    the pair rebuilds, frame offset by frame offset."""
    multiple: int = 1
    """See :func:`~vared2_mmaction.ops.kept`."""
    costs: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Multiply-adds of an element that is convolved, of one that is rebuilt in either dimension,
    and of the gate."""


def is_compilable(layer: Any) -> bool:
    """Whether there is compiled code for a layer of a fused network."""
    if not tells_kernels(layer):
        return False
    weight, _, stride, padding, _ = layer.kernels()
    in_2d = has_2d_form(weight.shape[2:], stride, padding)
    return in_2d or library().can_tile(weight.shape[1])


def tells_kernels(layer: Any) -> bool:
    """Whether ``kernels`` and ``options`` of a layer of a fused network say all that it does."""
    return (
        hasattr(layer, 'kernels')
        and layer.groups == 1
        and layer.padding_mode == 'zeros'
        and not isinstance(layer.padding, str)
    )


class CompiledGate(Made):
    """A gate by compiled code."""

    def __init__(self) -> None:
        self._native: Any = None

    def native(self, gate: Any) -> Any:
        """The compiled gate.

        Args:
            gate: The :class:`~vared2_mmaction.ops.fused_gate.FusedGate`.
        """
        if self._native is None:
            tensors = (gate.first, gate.shift, gate.second, gate.beta)
            self._native = library().Gate(*tensors, gate.motion, GRID)
        return self._native

    def __call__(self, gate: Any, clips: Tensor) -> Tensor | None:
        """What the gate weighs, (N, 2, width), or None where there is no compiled code.

        Args:
            gate: See :meth:`native`.
            clips: What the gate sees, (N, C, T, H, W).
        """
        return self.native(gate).weigh(clips) if library().serves(clips) else None


class _Layer(NamedTuple):
    """The compiled layer of some kernels."""

    native: Any
    decides: bool
    """Whether the layer has a gate."""
    gate: Any
    """The gate, if there is compiled code for it."""
    floor: float
    weight: Tensor
    bias: Tensor | None
    version: Version
    plans: dict[tuple[int, ...], bool]
    """Whether clips of a kind can be convolved."""

    @classmethod
    def of(cls, owner: Any, weight: Tensor, bias: Tensor | None) -> '_Layer':
        options, kernels = owner.options(), owner.kernels()
        native = library().Layer(
            list(options.kept),
            len(options.tables[0]),
            [table for tables in options.tables for table in tables],
            options.costs,
            kernels[:2],
            list(map(list, kernels[2:])),
            owner.clip_rows,
        )
        fused, decides = owner.fused_gate, owner.gate is not None
        gate, floor = (None, 0.0) if fused is None else (fused.compiled.native(fused), fused.floor)
        return cls(native, decides, gate, floor, weight, bias, version_of(weight), {})

    def serves(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether the parameters are as they were."""
        same = weight is self.weight and bias is self.bias
        return same and self.version == version_of(weight)

    def plan(self, owner: Any, like: Tensor, key: tuple[int, ...]) -> bool:
        """Tell the compiled layer how to convolve clips of a kind; whether it can."""
        if key not in self.plans:
            self.plans[key] = self._plan(owner, like, key)
        return self.plans[key]

    def _plan(self, owner: Any, like: Tensor, key: tuple[int, ...]) -> bool:
        number, frames, rows, columns, channel, temporal = key
        plans = owner.plans
        if plans is None or len(self.plans) >= packed.MAX_SHAPES:
            return False
        weight, bias, (pace, *stride), padding, dilation = owner.kernels()
        channels, pace = owner.options().kept[channel], pace * 2**temporal
        weight, bias = weight[:channels], None if bias is None else bias[:channels]
        # Frames that are left out are not copied, if the kernel can step over them.
        for step in (1, pace) if weight.shape[2] == 1 and not padding[0] else (1,):
            shape = (number, like.shape[1], -(-frames // step), rows, columns)
            x = like.new_zeros(shape).contiguous(memory_format=torch.channels_last_3d)
            _, plan = plans.watch(
                x,
                weight,
                bias,
                functools.partial(
                    convolve, x, weight, bias, (pace // step, *stride), padding, dilation, 1
                ),
            )
            if plan is not None and plan.dense(x):
                self.native.add_plan(
                    key,
                    step,
                    *plan.view,
                    plan.call.kernels,
                    plan.call.bias,
                    plan.call.sizes,
                    plan.call.groups,
                    *plan.convolved,
                )
                return True
        return False


class CompiledConv(Made):
    """The convolution of one layer by compiled code.

    The layer, a dynamic one or a stock one in its fastest form, is handed over with every call. It
    has ``kernels()``, what it convolves with, as :class:`Kernels`; ``options()``, an
    :class:`Options`; its ``plans``, whose packed kernels are used; ``relu``, ``skip`` and
    ``clip_rows``; its ``gate`` and ``fused_gate``, None for a stock one; and what is ``forced``.

    Where there is no compiled code for an input, the layer goes on as ever: with gradients, under
    autocast, for other types than float32 and other layouts than channels-last.
    """

    stays_on_device = False

    def __init__(self) -> None:
        self._made: _Layer | None = None

    def forward(
        self, owner: Any, x: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Charges] | None:
        """Decide by a gate, or as is forced, and convolve.

        Args:
            owner: The layer, a dynamic one.
            x: Input, (N, C, T, H, W) or (N T, C, H, W).
            residual: Added to the output, of its shape.

        Returns:
            Output and what each clip is charged, or None where there is no compiled code.

        Raises:
            FloatingPointError: If weights are not finite.
            ValueError: If options are forced for another number of clips.
        """
        block = Block([owner], adds=residual is not None)
        while True:
            found = execute([block], x, residual)
            if found.blocks:
                return found.y, found.charges[0]
            if found.missing is None or not self._current(owner).plan(owner, x, found.missing):
                return None

    def step(self, owner: Any, x: Tensor) -> tuple | None:
        """A layer as compiled code is told of it; None where it cannot be.

        Args:
            owner: The layer.
            x: Its input, or that of a layer before it, of as many rows.
        """
        made, (clips, rest) = self._current(owner), divmod(x.shape[0], owner.clip_rows)
        if rest or x.dim() != made.weight.dim():
            return None
        if made.decides and (made.gate is None or owner.fused_gate.is_watched()):
            return None
        forced = None if owner.forced is None else owner.forced.pairs(clips)
        return made.native, made.gate, made.floor, forced, owner.relu, owner.skip

    def modulate(
        self, owner: Any, x: Tensor, weights: Sequence[Weights], epilogue: Epilogue
    ) -> Tensor | None:
        """Convolve with given weights.

        Args:
            owner: The layer.
            x: Input, (N, C, T, H, W).
            weights: Weights of the options for each clip.
            epilogue: What follows.

        Returns:
            Output, or None where there is no compiled code.

        Raises:
            FloatingPointError: If weights are not finite.
        """
        made = self._current(owner)
        while True:
            y = made.native.modulate(x, weights, *epilogue, owner.skip)
            if isinstance(y, Tensor):
                return y
            if y is None or not made.plan(owner, x, y):
                return None

    def tensors(self) -> list[Tensor]:
        """Kernels as the compiled code reads them, which take memory beside the layer's own."""
        return [] if self._made is None else self._made.native.tensors()

    def _current(self, owner: Any) -> '_Layer':
        """Compiled layer of the kernels as they are now."""
        made, parameters = self._made, owner._parameters
        weight, bias = parameters['weight'], parameters['bias']
        if made is None or not made.serves(weight, bias):
            made = self._made = _Layer.of(owner, weight, bias)
        return made
