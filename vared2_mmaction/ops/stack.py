# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Gates of a fused network, those of the same input as one module."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .gate import SoftModulationGate, describe, full_precision
from .watched import is_watched


class GateStack(nn.Module):
    """L gates of the same input as one module, for inference.

    Args:
        gates: Gates with the same hidden width, each of which can be stacked.
        compiled: What evaluates them where it can: a
            :class:`~vared2_mmaction.ops.compiled.CompiledGates` or a
            :class:`~vared2_mmaction.ops.gpu.gates.DeviceGates`.
    """

    first: Tensor
    shift: Tensor
    second: Tensor
    beta: Tensor

    def __init__(self, gates: Sequence[SoftModulationGate], compiled: Any = None) -> None:
        super().__init__()
        with torch.no_grad():
            width = max(g.width for g in gates)
            weight, bias = gates[0].fc1.weight, gates[0].fc1.bias
            second = weight.new_zeros(len(gates), gates[0].fc1.out_features, 2, width)
            beta = bias.new_zeros(len(gates), 1, 2, width)
            for row, g in enumerate(gates):
                parts = ((0, g.channel_options), (g.channel_options, g.temporal_options))
                for dimension, (start, number) in enumerate(parts):
                    of = slice(start, start + number)
                    second[row, :, dimension, :number] = g.fc2.weight[of].T
                    beta[row, 0, dimension, :number] = g.fc2.bias[of]
            tensors = {
                'first': torch.cat([g.fc1.weight for g in gates]).T.contiguous(),
                'shift': torch.cat([g.fc1.bias for g in gates]),
                'second': second.flatten(2),
                'beta': beta.flatten(2),
            }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)
        self.motion = gates[0].motion
        self.compiled = compiled
        self._parts = tuple(part for gate in gates for part in gate.modules())

    def is_watched(self) -> bool:
        """Whether somebody wants to see the gates called."""
        return any(map(is_watched, self._parts))

    def forward(self, clips: Tensor) -> Tensor:
        """What :meth:`SoftModulationGate.weigh` returns for each gate, (N, L, 2, options).

        Args:
            clips: What the gates see, (N, C, T, H, W).
        """
        if self.compiled is not None and (v := self.compiled(self, clips)) is not None:
            return v
        with full_precision(clips):
            described = describe(clips, self.motion, self.first.dtype)
            hidden = torch.addmm(self.shift, described, self.first).tanh_()
            hidden = hidden.unflatten(1, (len(self.second), -1)).transpose(0, 1)
            v = torch.baddbmm(self.beta, hidden, self.second).tanh_()
            return v.transpose(0, 1).unflatten(2, (2, -1))
