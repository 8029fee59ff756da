# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The gate of a fused network."""

from typing import Any

import torch
from torch import Tensor, nn

from .answer import Modulation
from .gate import SoftModulationGate, describe, full_precision, open_options
from .watched import is_watched


class FusedGate(nn.Module):
    """A gate whose normalisation has been folded, as two matrix products, for inference.

    Args:
        gate: The gate; see :meth:`SoftModulationGate.can_fuse`.
        compiled: What evaluates it where it can: a
            :class:`~vared2_mmaction.ops.compiled.CompiledGate` or a
            :class:`~vared2_mmaction.ops.gpu.gate.DeviceGate`.
    """

    first: Tensor
    """(descriptor, hidden)."""
    shift: Tensor
    """(hidden,)."""
    second: Tensor
    """(hidden, 2 width), zeros behind the options of the dimension that has fewer."""
    beta: Tensor
    """(2 width,)."""

    def __init__(self, gate: SoftModulationGate, compiled: Any = None) -> None:
        super().__init__()
        with torch.no_grad():
            weight, bias = gate.fc2.weight, gate.fc2.bias
            second = weight.new_zeros(weight.shape[1], 2, gate.width)
            beta = bias.new_zeros(2, gate.width)
            parts = ((0, gate.channel_options), (gate.channel_options, gate.temporal_options))
            for dimension, (start, number) in enumerate(parts):
                second[:, dimension, :number] = weight[start : start + number].T
                beta[dimension, :number] = bias[start : start + number]
            tensors = {
                'first': gate.fc1.weight.T.contiguous(),
                'shift': gate.fc1.bias.clone(),
                'second': second.flatten(1),
                'beta': beta.flatten(),
            }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)
        self.motion, self.floor = gate.motion, gate.floor
        self.channel_options = gate.channel_options
        self.compiled = compiled
        self._parts = tuple(gate.modules())

    def is_watched(self) -> bool:
        """Whether somebody wants to see the gate called."""
        return any(map(is_watched, self._parts))

    def forward(self, x: Tensor, temporal_options: int) -> Modulation:
        """Weigh the options for every clip; see :meth:`SoftModulationGate.forward`."""
        return open_options(self.weigh(x), (self.channel_options, temporal_options), self.floor)

    def weigh(self, x: Tensor) -> Tensor:
        """Weights before any option is switched off, (N, 2, width).

        Args:
            x: What the gate sees, (N, C, T, H, W).
        """
        if self.compiled is not None and (v := self.compiled(self, x)) is not None:
            return v
        with full_precision(x):
            described = describe(x, self.motion, self.first.dtype)
            hidden = torch.addmm(self.shift, described, self.first).tanh_()
            return torch.addmm(self.beta, hidden, self.second).tanh_().unflatten(1, (2, -1))
