# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Every form of a convolution or pool equals the stock one, in every layout of its input."""

import pytest
import torch
import torch.nn.functional as F

from vared2_mmaction.layout import convolve, empty_clips, layout, max_pool

pytestmark = pytest.mark.fast

LAYOUTS = ('contiguous', 'frames', 'channels last')
KERNELS = {
    'spatial': ((1, 3, 3), (1, 2, 2), (0, 1, 1), (1, 1, 1), 1),
    'spatial, every other frame': ((1, 3, 3), (2, 1, 1), (0, 1, 1), (1, 1, 1), 1),
    'dilated and grouped': ((1, 3, 3), (1, 1, 1), (0, 2, 2), (1, 2, 2), 2),
    'temporal': ((3, 1, 1), (1, 1, 1), (1, 0, 0), (1, 1, 1), 1),
    'temporal, every other frame': ((3, 1, 1), (2, 1, 1), (1, 0, 0), (1, 1, 1), 1),
    'temporal, dilated': ((3, 1, 1), (1, 1, 1), (2, 0, 0), (2, 1, 1), 1),
    'temporal with spatial stride': ((3, 1, 1), (1, 2, 2), (1, 0, 0), (1, 1, 1), 1),
    'padded in time': ((1, 1, 1), (1, 1, 1), (1, 0, 0), (1, 1, 1), 1),
    'pointwise': ((1, 1, 1), (2, 1, 1), (0, 0, 0), (1, 1, 1), 1),
    'pointwise with spatial stride': ((1, 1, 1), (2, 2, 2), (0, 0, 0), (1, 1, 1), 1),
    'whole': ((3, 3, 3), (1, 2, 2), (1, 1, 1), (1, 1, 1), 1),
}


def clips(lies, shape=(2, 4, 5, 6, 7)):
    x = torch.randn(shape, dtype=torch.float64)
    if lies == 'channels last':
        return x.to(memory_format=torch.channels_last_3d)
    return x.transpose(1, 2).contiguous().transpose(1, 2) if lies == 'frames' else x


@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('lies', LAYOUTS)
@pytest.mark.parametrize('name', KERNELS)
def test_convolutions(name, lies, batch):
    kernel, *sizes, groups = KERNELS[name]
    x = clips(lies, (batch, 4, 5, 6, 7)).requires_grad_()
    weight = torch.randn(6, 4 // groups, *kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert layout(x) == lies
    y = convolve(x, weight, bias, *sizes, groups)
    expected = F.conv3d(x, weight, bias, *sizes, groups)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    inputs, given = (x, weight, bias), torch.randn_like(expected)
    found = torch.autograd.grad(y, inputs, given)
    for a, b in zip(found, torch.autograd.grad(expected, inputs, given), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('stride', [(2, 1, 1), (1, 2, 2)], ids=str)
@pytest.mark.parametrize('channels', [3, 15, 16])
def test_onednn_is_asked_for_no_pointwise_stride_of_few_channels(channels, stride):
    """Its backward pass would write beyond its buffers."""
    seen = []

    def noted(x, weight, bias, strides, *sizes):
        seen.append((x.shape[1], max(strides)))
        return F.conv2d(x, weight, bias, strides, *sizes)

    x = clips('channels last', (2, channels, 4, 6, 6)).float()
    weight = torch.randn(5, channels, 1, 1, 1)
    convolve(x, weight, None, stride, (0, 0, 0), (1, 1, 1), 1, noted)
    assert seen
    assert all(number >= 16 or step == 1 for number, step in seen)
    seen.clear()
    with torch.no_grad():  # nothing to copy
        convolve(x, weight, None, stride, (0, 0, 0), (1, 1, 1), 1, noted)
    assert seen == [(channels, max(stride))]


@pytest.mark.parametrize(
    'name', ['spatial', 'temporal', 'pointwise', 'pointwise with spatial stride']
)
def test_channels_last_stays_channels_last(name):
    """Or the layers after this one would take the slow kernels."""
    kernel, *sizes, groups = KERNELS[name]
    for shape in ((1, 4, 5, 6, 7), (1, 4, 1, 6, 7), (3, 4, 5, 6, 7)):
        x = clips('channels last', shape).float()
        weight = torch.randn(6, 4, *kernel).to(memory_format=torch.channels_last_3d)
        assert layout(convolve(x, weight, None, *sizes, groups)) == 'channels last'


@pytest.mark.parametrize('lies', LAYOUTS)
@pytest.mark.parametrize(
    ('kernel', 'stride', 'padding'),
    [
        ((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        ((2, 1, 1), (2, 1, 1), (0, 0, 0)),
        ((3, 3, 3), (2, 2, 2), (1, 1, 1)),
        ((1, 2, 2), (2, 2, 2), (0, 0, 0)),
    ],
)
@pytest.mark.parametrize('ceil_mode', [True, False])
def test_pools(kernel, stride, padding, lies, ceil_mode):
    x = clips(lies)
    y = max_pool(x, kernel, stride, padding, (1, 1, 1), ceil_mode)
    assert torch.equal(y, F.max_pool3d(x, kernel, stride, padding, (1, 1, 1), ceil_mode))


@pytest.mark.parametrize('lies', LAYOUTS)
def test_empty_clips_lie_as_others_do(lies):
    made = empty_clips((3, 8, 4, 2, 2), clips(lies))
    assert made.shape == (3, 8, 4, 2, 2)
    assert made.dtype == torch.float64
    assert layout(made) == lies
