# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Convolutions and gates in C++, for float32 clips on a CPU.

What a layer does beside its convolution is little, and in Python that little takes longer than a
convolution of small maps: the gate, the grouping of clips, the views for oneDNN. Here all of it is
done by ``native/*.cpp``, which also convolve tile by tile, where the processor has the products for
that, and write each output element once: mixed or rebuilt, with the residual added and ReLU
applied. What follows each other is executed by one call; see
:mod:`vared2_mmaction.executors.cpu.blocks`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ...layout import as_clips, has_2d_form, innermost
from ...ops import Modulation, SoftModulationGate, kept
from ...ops.conv import check_clips, of_options
from ...ops.gate import GRID
from ...ops.options import WHOLE, available
from ...watched import is_plain, is_watched
from ..base import Choice, LayerRecord
from . import packed
from .library import library
from .packed import PackedConvolution
from .plan import plan


class CpuConv:
    """Executes one convolution, with its gate where that is the one of the definition.

    Not served, and left to the eager executor, are inputs with gradients, under autocast, and of
    other types than float32. Channels that lie outermost are laid innermost first.

    Args:
        record: Of a layer for which :meth:`of` gives an executor.
    """

    def __init__(self, record: LayerRecord) -> None:
        self.record = record
        self._packed = PackedConvolution(record)
        self._planned: set[tuple[int, ...]] = set()
        self._forced: Tensor | None = None
        native, choice = library(), record.choice
        self._layer = _native_layer(record)
        asked: Any = None if choice is None or max(map(len, choice.in_use)) == 1 else choice.gate
        own = asked if is_definition(asked) else None
        gate, floor = (None, 0.0) if own is None else (native_gate(own), own.floor)
        self._parts: tuple[nn.Module, ...] = () if own is None else tuple(own.modules())
        self._calls_gate = asked is not own
        self._step = native.Step(layer=self._layer, gate=gate, floor=floor, relu=record.relu)

    @classmethod
    def of(cls, record: LayerRecord) -> Self | None:
        """The executor of a layer, or None where there is no compiled code for it."""
        weight = record.weight
        if weight.device.type != 'cpu' or weight.dtype != torch.float32 or record.groups > 1:
            return None
        in_2d = has_2d_form(weight.shape[2:], record.stride, record.padding)
        return cls(record) if in_2d or library().can_tile(weight.shape[1]) else None

    def __call__(
        self, x: Tensor, residual: Tensor | None = None, forced: Tensor | None = None
    ) -> tuple[Tensor, Any] | None:
        """See :class:`~vared2_mmaction.executors.base.Executor`."""
        if not self._fits(x):
            return None
        native, step = library(), self.step(x, forced)
        if not native.serves(x):  # those with channels outermost are laid out anew
            x = innermost(x)
            if not native.serves(x):
                return None
        residual = None if residual is None else innermost(residual)
        if step is None:
            step = self._step_of_called_gate(x)
        block = native.Block(first=[], beside=[], last=step, adds=residual is not None)
        while True:
            found = native.execute([block], x, residual)
            if found.blocks:
                return found.y, found.charges[0]
            if found.missing is None or not self._plan(found.missing):
                return None

    def step(self, x: Tensor, forced: Tensor | None) -> Any:
        """The layer as compiled code is told of it; None where its gate is to be called, or where
        it is no layer for such an input.

        Args:
            x: Its input, or that of a layer before it, of as many rows.
            forced: Options, (N or 1, 2), or None.

        Raises:
            ValueError: If options are forced for another number of clips.
        """
        if not self._fits(x):
            return None
        if forced is None and (self._calls_gate or is_watched(*self._parts)):
            return None
        if forced is not None:
            check_clips(forced, x.shape[0] // self.record.clip_rows)
        if forced is not self._forced:
            self._forced = forced
            self._step.forced = None if forced is None else forced.tolist()
        return self._step

    def tensors(self) -> list[Tensor]:
        """Kernels as the compiled code reads them, which take memory beside the layer's own."""
        return [*self._packed.tensors(), *self._layer.tensors()]

    def _fits(self, x: Tensor) -> bool:
        return x.dim() == self.record.rank + 2 and x.shape[0] % self.record.clip_rows == 0

    def _step_of_called_gate(self, x: Tensor) -> Any:
        """Let the gate be called, and tell compiled code what it weighs."""
        record, native = self.record, library()
        assert record.choice is not None
        clips = x if record.rank == 3 else as_clips(x, record.clip_rows)
        step = native.Step(layer=self._layer, gate=None, floor=0.0, relu=record.relu)
        step.weights = weigh(record.choice, clips, record.output_frames(clips.shape[2]))
        return step

    def _plan(self, key: tuple[int, ...]) -> bool:
        """Tell compiled code how to convolve clips of a kind; whether it can."""
        if key in self._planned or len(self._planned) >= packed.MAX_SHAPES:
            return False
        number, frames, rows, columns, channel, temporal = key
        self._planned.add(key)
        shape = (number, self.record.weight.shape[1], frames, rows, columns)
        found = plan(self._packed, shape, channel, temporal)
        if found is None:
            return False
        views = {'view': found.view, 'convolved': found.convolved}
        self._layer.add_plan(key=key, step=found.step, **views, **found.call._asdict())
        return True


def weigh(choice: Choice, clips: Tensor, frames: int) -> list[tuple[list[float], list[float]]]:
    """Call the gate of a layer for weights of all options of each clip, (N, C, T, H, W), of which
    the layer makes so many frames.

    Raises:
        FloatingPointError: If weights are not finite.
        ValueError: If all options of a clip are off.
    """
    number = len(kept(frames, len(choice.tables[0])))
    which = choice.in_use.channel, available(choice.in_use.temporal, number)
    sizes = len(choice.constants.channels), number
    if max(map(len, which)) == 1:  # nothing to choose
        only = [[float(i == o) for i in range(n)] for n, (o,) in zip(sizes, which, strict=True)]
        return [(only[0], only[1])] * len(clips)
    weights: Modulation = choice.gate(clips, number)
    every = []
    for v, options in zip(weights, which, strict=True):
        used = torch.zeros_like(v)
        used[:, list(options)] = of_options(v, options)
        if not bool(used.isfinite().all()):
            raise FloatingPointError('the weights of the gate are not finite')
        if not bool((used > 0).any(1).all()):
            raise ValueError('expected an option that is on for every clip')
        every.append(used.tolist())
    return list(zip(*every, strict=True))


def is_definition(gate: Any) -> bool:
    """Whether a gate is the definition's, with its normalisation folded, and nothing watches it."""
    return (
        isinstance(gate, SoftModulationGate)
        and type(gate).forward is SoftModulationGate.forward
        and type(gate).weigh is SoftModulationGate.weigh
        and type(gate.bn) is nn.Identity
        and all(is_plain(fc, nn.Linear) and fc.bias is not None for fc in (gate.fc1, gate.fc2))
        and gate.fc1.weight.dtype == torch.float32
    )


@torch.no_grad()
def native_gate(gate: SoftModulationGate) -> Any:
    """The compiled gate, whose options of the dimension that has fewer are filled up with zeros."""
    width = max(gate.channel_options, gate.temporal_options)
    parts = gate.channel_options, gate.temporal_options
    second = gate.fc2.weight.new_zeros(2, width, gate.fc2.in_features)
    beta = gate.fc2.bias.new_zeros(2, width)
    for dimension, (weight, bias) in enumerate(
        zip(gate.fc2.weight.split(parts), gate.fc2.bias.split(parts), strict=True)
    ):
        second[dimension, : len(weight)] = weight
        beta[dimension, : len(bias)] = bias
    return library().Gate(
        first=gate.fc1.weight.T.contiguous(),
        shift=gate.fc1.bias.clone(),
        second=second.flatten(0, 1).T.contiguous(),
        beta=beta.flatten(),
        motion=gate.motion,
        grid=GRID,
    )


def _native_layer(record: LayerRecord) -> Any:
    choice, weight = record.choice, record.weight
    channels: tuple[int, ...] = (len(weight),)
    tables: tuple[tuple[Tensor, ...], ...] = ((weight.new_empty(0),),)
    gate_macs, in_use = 0, WHOLE
    if choice is not None:
        constants = choice.constants
        channels, tables, in_use = constants.channels, choice.tables, choice.in_use
        gate_macs = constants.gate
    return library().Layer(
        dynamic=choice is not None,
        kept=channels,
        temporal=len(tables[0]),
        tables=[table for row in tables for table in row],
        in_use=in_use,
        costs=(weight.shape[1:].numel(), gate_macs),
        weight=weight,
        bias=record.bias,
        stride=record.stride,
        padding=record.padding,
        dilation=record.dilation,
        segments=record.clip_rows,
    )
