# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Stock convolutions and pools keep their results in other forms, and become stock again."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import wrappers
from torch import nn

from vared2_mmaction.models.forms import (
    FormedConv2d,
    pack_kernels,
    restore_stock_forms,
    use_forms,
)

KERNELS = {
    'pointwise, strided': dict(kernel_size=1, stride=2),
    'spatial, strided': dict(kernel_size=3, stride=2, padding=1),
    'padded': dict(kernel_size=1, stride=2, padding=1),
    'grouped': dict(kernel_size=1, stride=2, groups=2),
    'reflecting': dict(kernel_size=3, padding=1, padding_mode='reflect'),
    'same': dict(kernel_size=3, padding='same'),
}


@pytest.mark.parametrize('kind', [nn.Conv2d, wrappers.Conv2d])
@pytest.mark.parametrize('name', KERNELS)
def test_2d_convolutions(name, kind):
    torch.manual_seed(0)
    stock = kind(6, 4, **KERNELS[name])
    formed = copy.deepcopy(stock)
    use_forms(formed)
    assert type(formed) is FormedConv2d
    x = torch.randn(3, 6, 8, 9).requires_grad_()
    expected = stock(x)  # contiguous
    y = formed(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(y, expected)
    given = torch.randn_like(y)
    for own, other in ((formed, stock), (x, x)):
        inputs = [
            list(part.parameters()) if isinstance(part, nn.Module) else [part]
            for part in (own, other)
        ]
        found = torch.autograd.grad(y, inputs[0], given, retain_graph=True)
        wanted = torch.autograd.grad(expected, inputs[1], given, retain_graph=True)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b)
    restore_stock_forms(formed)
    assert type(formed) is nn.Conv2d


def test_no_pointwise_stride_of_few_channels_with_channels_innermost():
    seen = []

    def noted(x, weight, bias, stride, *sizes):
        seen.append(tuple(stride))
        return F.conv2d(x, weight, bias, stride, *sizes)

    for channels in (6, 16):
        conv = nn.Conv2d(channels, 4, 1, stride=2)
        use_forms(conv)
        x = torch.randn(2, channels, 6, 6).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(conv._in_2d(x.unsqueeze(2), noted).squeeze(2), conv(x))
    assert seen == [(1, 1), (2, 2)]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason='needs oneDNN')
def test_packed_stock_convolutions():
    """In 2-D, and in 3-D where they have a 2-D form."""
    torch.manual_seed(0)
    pairs = [
        (nn.Conv2d(6, 4, 3, padding=1), torch.randn(2, 6, 8, 9)),
        (nn.Conv3d(6, 4, (1, 3, 3), padding=(0, 1, 1)), torch.randn(2, 6, 4, 8, 9)),
        (nn.Conv3d(6, 4, (3, 1, 1), padding=(1, 0, 0)), torch.randn(2, 6, 4, 8, 9)),
    ]
    for stock, x in pairs:
        packed = copy.deepcopy(stock)
        use_forms(packed)
        pack_kernels(packed)
        last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        with torch.no_grad():
            y = packed(x.contiguous(memory_format=last))
            torch.testing.assert_close(y, stock(x), rtol=1e-5, atol=1e-5)
        assert packed.plans.tensors()
