# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Gates of a fused network, those of the same input as one module."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .gate import SoftModulationGate, describe, descriptor_on_host, full_precision


class GateStack(nn.Module):
    """L gates of the same input as one module, for inference.

    Args:
        gates: Gates with the same hidden width, their normalisation folded.
    """

    first: Tensor
    shift: Tensor
    second: Tensor
    beta: Tensor

    def __init__(self, gates: Sequence[SoftModulationGate]) -> None:
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
        self._arrays = tuple(tensors[name].float().cpu().numpy() for name in ('second', 'beta'))

    def forward(self, clips: Tensor) -> Tensor:
        """What :meth:`SoftModulationGate.weigh` returns for each gate, (N, L, 2, options).

        Args:
            clips: What the gates see, (N, C, T, H, W).
        """
        with full_precision(clips):
            if clips.device.type == 'cpu' and clips.dtype == torch.float32:
                return torch.from_numpy(self._on_host(clips))
            described = describe(clips, self.motion, self.first.dtype)
            hidden = torch.addmm(self.shift, described, self.first).tanh_()
            hidden = hidden.unflatten(1, (len(self.second), -1)).transpose(0, 1)
            v = torch.baddbmm(self.beta, hidden, self.second).tanh_()
            return v.transpose(0, 1).unflatten(2, (2, -1))

    def _on_host(self, clips: Tensor) -> np.ndarray:
        second, beta = self._arrays
        described = torch.from_numpy(descriptor_on_host(clips.detach(), self.motion))
        # By PyTorch: from some size on NumPy's threads would be in the way of PyTorch's.
        hidden = torch.addmm(self.shift, described, self.first).numpy()
        np.tanh(hidden, hidden)
        v = hidden.reshape(len(hidden), len(second), 1, -1) @ second
        v += beta
        np.tanh(v, v)
        return v.reshape(len(hidden), len(second), 2, -1)
