# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Gates by kernels answer what they answer by operations of PyTorch."""

import pytest
import torch
from torch import nn

from vared2_mmaction.ops import SoftModulationGate
from vared2_mmaction.ops.fused_gate import FusedGate
from vared2_mmaction.ops.gpu import OLDEST

from .device import DEVICE, needs_kernels

pytest.importorskip('triton', minversion=OLDEST)

from vared2_mmaction.ops.gpu.gate import DeviceGate

pytestmark = needs_kernels


def twins(channels, numbers, motion=True):
    gate = SoftModulationGate(channels, *numbers, motion=motion)
    nn.init.normal_(gate.fc2.weight)
    gate.eval()
    gate.fold_norm()
    return FusedGate(gate, DeviceGate()).to(DEVICE), FusedGate(gate).to(DEVICE)


@pytest.mark.parametrize('layout', ['channels last', 'contiguous', 'frames'])
@pytest.mark.parametrize(
    ('shape', 'numbers', 'motion'),
    [
        ((2, 5, 4, 7, 9), (3, 3), True),
        ((3, 130, 5, 4, 4), (3, 2), True),  # more channels than a program describes
        ((3, 130, 5, 4, 4), (2, 3), True),
        ((1, 64, 1, 3, 2), (4, 4), True),  # one frame does not move
        ((1, 64, 1, 3, 2), (1, 3), True),
        ((2, 70, 9, 17, 5), (3, 3), False),
        ((0, 8, 4, 5, 5), (3, 3), True),
    ],
    ids=str,
)
def test_answers(shape, numbers, motion, layout):
    gate, twin = twins(shape[1], numbers, motion)
    x = torch.randn(shape, device=DEVICE)
    if layout == 'channels last':
        x = x.contiguous(memory_format=torch.channels_last_3d)
    elif layout == 'frames':
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    with torch.no_grad():
        for _ in range(2):  # the first call leaves its counters as it found them
            found = gate.weigh(x)
            assert found.shape == (shape[0], 2, max(numbers))
            torch.testing.assert_close(found, twin.weigh(x), rtol=1e-4, atol=1e-5)
        half = gate.weigh(x.bfloat16())
        torch.testing.assert_close(half, twin.weigh(x.bfloat16().float()), rtol=1e-4, atol=1e-5)
        assert len(gate.compiled._arrived) == (shape[0] > 0)


def test_gradients_are_not_asked_of_kernels():
    gate, twin = twins(5, (3, 3))
    x = torch.randn(2, 5, 4, 7, 9, device=DEVICE)
    torch.testing.assert_close(gate.weigh(x), twin.weigh(x))
    assert not gate.compiled._arrived
