# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Stock convolutions and pools keep their results in other forms, and become stock again."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import wrappers
from torch import nn

from vared2_mmaction.models.forms import FormedConv2d, restore_stock_forms, use_forms

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


def test_no_pointwise_stride_of_few_channels_with_channels_innermost(monkeypatch):
    seen = []

    def noted(x, weight, bias, stride, *sizes):
        seen.append(tuple(stride))
        return original(x, weight, bias, stride, *sizes)

    original = F.conv2d
    for channels in (6, 16):
        stock = nn.Conv2d(channels, 4, 1, stride=2)
        conv = copy.deepcopy(stock)
        use_forms(conv)
        x = torch.randn(2, channels, 6, 6).contiguous(memory_format=torch.channels_last)
        with monkeypatch.context() as patch:
            patch.setattr(F, 'conv2d', noted)
            y = conv(x)
        torch.testing.assert_close(y, stock(x))
    assert seen == [(1, 1), (2, 2)]
