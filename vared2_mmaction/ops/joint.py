# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Gates of the layers of one block that decide together, from the input of the block.

A descriptor, a few small matrix products and, on a GPU, the host's wait for an answer cost the same
for one layer as for all layers of a block. As with :func:`~vared2_mmaction.ops.collect`,
stock blocks pass nothing but features, so what was decided reaches the layers through a scope.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor, nn

from .answer import Answer, Modulation
from .blend import shares
from .gate import SoftModulationGate, describe, full_precision, open_on_host, open_options
from .stack import GateStack
from .together import weigh


class Joint:
    """What the gates of a block's layers answer to the block's input.

    Args:
        layers: The layers, each with a :class:`SoftModulationGate` as its ``gate``.
        clips: Input of the block, (N, C, T, H, W).
        stack: The gates as one module, if they have been made one.
    """

    rows: Mapping[nn.Module, int]
    """Which of the gates is a layer's."""

    def __init__(
        self, layers: Sequence[nn.Module], clips: Tensor, stack: GateStack | None = None
    ) -> None:
        self.rows = {layer: row for row, layer in enumerate(layers)}
        self._gates: list[SoftModulationGate] = [layer.gate for layer in layers]  # type: ignore[misc]
        self._v = _weigh(self._gates, clips) if stack is None else stack(clips)
        self._opened: dict[int, Tensor] = {}
        self._divided: dict[tuple[int, float | None], list[Modulation]] = {}

    @functools.cached_property
    def _fetched(self) -> list[list[list[list[float]]]]:
        return self._v.tolist()  # the one time that the host waits for the device

    @property
    def weights(self) -> Tensor:
        """Weights before any option is switched off, (N, layers, 2, options), in the order of
        :attr:`rows`."""
        return self._v

    def answer(self, layer: nn.Module, temporal_options: int) -> Answer:
        """What the gate of one of the layers answers.

        Args:
            layer: The layer.
            temporal_options: Number of temporal options that the length of its output allows.
        """
        row = self.rows[layer]
        gate = self._gates[row]
        numbers = (gate.channel_options, temporal_options)
        weights = [
            [open_on_host(v, n, gate.floor) for v, n in zip(clip[row], numbers, strict=True)]
            for clip in self._fetched
        ]

        def modulation() -> Modulation:
            opened = self._divide(temporal_options)[row]
            return Modulation(
                *(v if v.shape[1] == n else v[:, :n] for v, n in zip(opened, numbers, strict=True))
            )

        return Answer(weights, modulation, lambda s: self._divide(temporal_options, s)[row])

    def _divide(self, temporal_options: int, saturation: float | None = None) -> list[Modulation]:
        """Shares of each layer, or weights, as many as the layer with most options has."""
        key = temporal_options, saturation
        if key not in self._divided:
            v = self._open(temporal_options)
            parts = (v if saturation is None else shares(v, saturation)).unbind()
            self._divided[key] = [
                Modulation(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)
            ]
        return self._divided[key]

    def _open(self, temporal_options: int) -> Tensor:
        """Weights of the channel and temporal options of each layer in turn, (2 layers, N,
        options); what of it is one layer's lies dense."""
        if temporal_options not in self._opened:  # once for all layers of that length
            options = tuple(
                (g.channel_options, min(g.temporal_options, temporal_options), g.floor)
                for g in self._gates
            )
            opened = open_options(self._v, options)
            rows = opened.permute(1, 2, 0, 3).flatten(0, 1).contiguous()
            self._opened[temporal_options] = rows
        return self._opened[temporal_options]


def _weigh(gates: Sequence[SoftModulationGate], clips: Tensor) -> Tensor:
    """Weights before any option is switched off, (N, L, 2, options)."""
    with full_precision(clips):
        return weigh(gates, describe(clips, gates[0].motion, gates[0].fc1.weight.dtype))


_joint: ContextVar[Joint | None] = ContextVar('vared2_joint', default=None)


@contextmanager
def deciding(joint: Joint) -> Iterator[None]:
    """Let the layers of a block take their answers from a joint decision."""
    token = _joint.set(joint)
    try:
        yield
    finally:
        _joint.reset(token)


def joint_answer(layer: nn.Module, temporal_options: int) -> Answer | None:
    """The open decision's answer for a layer; None if there is none."""
    joint = open_decision(layer)
    return None if joint is None else joint.answer(layer, temporal_options)


def open_decision(layer: nn.Module) -> Joint | None:
    """The open decision that a layer is part of."""
    joint = _joint.get()
    return joint if joint is not None and layer in joint.rows else None
