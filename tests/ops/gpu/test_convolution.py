# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What the kernel of convolutions is made of."""

import pytest
import torch

from vared2_mmaction.ops.gpu import OLDEST

from .device import DEVICE, needs_kernels

pytest.importorskip('triton', minversion=OLDEST)

import triton
import triton.language as tl

from vared2_mmaction.ops.gpu.convolution import _quotient

pytestmark = needs_kernels


@triton.jit
def quotients(out, by, SIZE: tl.constexpr):
    number = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(out + number, _quotient(number, by))


@pytest.mark.parametrize('by', [1, 3, 41, 49, 55, 196, 3136, 12544])
def test_quotients_are_exact(by):
    found = torch.full((2**20,), -1, dtype=torch.int32, device=DEVICE)
    quotients[(2**20 // 2**15,)](found, by, 2**15)
    assert torch.equal(found.cpu(), torch.arange(2**20, dtype=torch.int32) // by)
