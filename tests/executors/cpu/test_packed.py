"""Packed kernels: the same convolution, packed once."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from vared2_mmaction.executors.cpu import packed
from vared2_mmaction.executors.cpu.packed import PackedConv2d

pytestmark = pytest.mark.fast

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason='PyTorch without oneDNN packs nothing'
)
CASES = {  # channels, kernels of (C', k_h, k_w), stride, padding, dilation, groups
    'square': (24, (40, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    'strided': (24, (40, 3, 3), (2, 2), (1, 1), (1, 1), 1),
    'along time': (24, (40, 3, 1), (2, 1), (1, 0), (1, 1), 1),
    'pointwise': (24, (40, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    'pointwise strided': (24, (40, 1, 1), (2, 2), (0, 0), (1, 1), 1),
    'dilated': (24, (40, 3, 3), (1, 2), (2, 2), (2, 2), 1),
    'grouped': (24, (40, 3, 3), (1, 1), (1, 1), (1, 1), 4),
    'depthwise': (24, (24, 3, 3), (1, 1), (1, 1), (1, 1), 24),
    'odd': (23, (7, 3, 3), (1, 1), (1, 1), (1, 1), 1),
}


def make(case, size=(2, 9, 7), dtype=torch.float32):
    """Input, weight and bias, channels innermost, and the sizes."""
    channels, (outputs, *kernel), *sizes, groups = CASES[case]
    generator = torch.Generator().manual_seed(0)
    shapes = (size[0], channels, *size[1:]), (outputs, channels // groups, *kernel), (outputs,)
    x, weight, bias = (torch.randn(s, generator=generator).to(dtype) for s in shapes)
    x, weight = (t.to(memory_format=torch.channels_last) for t in (x, weight))
    return (x, weight, bias), (*sizes, groups)


@pytest.fixture
def executed(monkeypatch):
    """How often ``F.conv2d`` took the place of packed kernels."""
    calls, conv2d = [], F.conv2d
    monkeypatch.setattr(packed.F, 'conv2d', lambda *args: calls.append(1) or conv2d(*args))
    return calls


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('case', CASES)
def test_equals_conv2d(case, dtype, executed):
    conv2d, tolerance = PackedConv2d(), {'rtol': 2e-2, 'atol': 0.2}
    if dtype == torch.float32:
        tolerance = {'rtol': 1e-5, 'atol': 1e-4}
    for size in ((2, 9, 7), (1, 9, 7), (3, 4, 4), (2, 9, 7)):
        tensors, sizes = make(case, size, dtype)
        for bias in (tensors[2], None):
            with torch.no_grad():
                y = conv2d(*tensors[:2], bias, *sizes)
                assert bool(executed) == (dtype not in packed.DTYPES)
                expected = F.conv2d(*tensors[:2], bias, *sizes)
                executed.clear()
            torch.testing.assert_close(y, expected, **tolerance)
            assert y.is_contiguous(memory_format=torch.channels_last)


def test_parts_of_the_kernels(executed):
    """Fewer output channels, as channel options take them, each packed on its own."""
    (x, weight, bias), sizes = make('square')
    conv2d = PackedConv2d()
    with torch.no_grad():
        for _ in range(2):
            found = [conv2d(x, weight[p], bias[p], *sizes) for p in (slice(20), slice(20, None))]
        assert len(conv2d.tensors()) == 2
        assert not executed
        expected = F.conv2d(x, weight, bias, *sizes)
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=1e-5, atol=1e-4)


def test_frames_with_gaps(executed):
    """Every second frame of a clip is channels-last, but not dense."""
    (x, weight, bias), sizes = make('square', (6, 9, 7))
    with torch.no_grad():
        y = PackedConv2d()(x[::2], weight, bias, *sizes)
        assert not executed
        torch.testing.assert_close(y, F.conv2d(x[::2], weight, bias, *sizes), rtol=1e-5, atol=1e-4)


def test_packed_for_every_stride(monkeypatch):
    """As temporal options take them of one input: another stride can ask for another layout."""
    (x, weight, bias), (_, padding, dilation, groups) = make('along time')
    asked, reorder = [], torch._C._nn.mkldnn_reorder_conv2d_weight

    def noted(kernels, padding, stride, *others):
        asked.append(tuple(stride))
        return reorder(kernels, padding, stride, *others)

    monkeypatch.setattr(torch._C._nn, 'mkldnn_reorder_conv2d_weight', noted)
    conv2d = PackedConv2d()
    with torch.no_grad():
        for stride in ((1, 1), (2, 1), (1, 1), (2, 1)):
            y = conv2d(x, weight, bias, stride, padding, dilation, groups)
            expected = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
            torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-4)
    assert asked == [(1, 1), (2, 1)]


def test_equal_layouts_are_kept_once():
    conv2d = PackedConv2d()
    (x, weight, bias), sizes = make('square', (8, 9, 7))
    with torch.no_grad():
        for clips in range(1, 9):
            conv2d(x[:clips], weight, bias, *sizes)
    assert 1 <= len(conv2d.tensors()) < 8


@pytest.mark.parametrize('why', ['gradients', 'layout', 'type', 'autocast', 'nothing'])
def test_other_calls_are_those_of_conv2d(why, executed):
    (x, weight, bias), sizes = make('square')
    conv2d = PackedConv2d()
    if why == 'gradients':
        y = conv2d(x, weight.requires_grad_(), bias, *sizes)
        y.sum().backward()
        assert weight.grad is not None
    else:
        if why == 'layout':
            x = x.contiguous()
        elif why == 'type':
            x, weight, bias = (t.double() for t in (x, weight, bias))
        elif why == 'nothing':
            x = x[:0]
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=why == 'autocast'):
            y = conv2d(x, weight, bias, *sizes)
        assert y.dtype == (torch.bfloat16 if why == 'autocast' else x.dtype)
    assert len(executed) == 1
    assert not conv2d.tensors()


def test_too_many_shapes(monkeypatch, executed):
    monkeypatch.setattr(packed, 'MAX_SHAPES', 2)
    conv2d = PackedConv2d()
    with torch.no_grad():
        for clips in (1, 2, 3, 1):
            (x, weight, bias), sizes = make('square', (clips, 9, 7))
            conv2d(x, weight, bias, *sizes)
    assert len(executed) == 2  # every make has a weight of its own


def test_counted_as_the_same_multiply_adds():
    tensors, sizes = make('along time')
    counts = []
    for conv2d in (PackedConv2d(), F.conv2d):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            conv2d(*tensors, *sizes)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
