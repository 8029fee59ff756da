# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Layers on a GPU compute, decide and are charged what the definition does."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vared2_mmaction.deploy.fold import fold_norm_of_gate
from vared2_mmaction.executors.cuda import create
from vared2_mmaction.executors.cuda import maps as lying
from vared2_mmaction.ops import charge

from ...ops.layers import Case, build
from .device import DEVICE, EXACT, needs_kernels, record_of

pytestmark = needs_kernels


@pytest.fixture(autouse=True)
def _exact():
    with torch.backends.cudnn.flags(**EXACT), torch.no_grad():
        yield


def conv(inputs, outputs, kernel, **options):
    return {'in_channels': inputs, 'out_channels': outputs, 'kernel_size': kernel, **options}


CASES = [
    Case('3-D', conv(4, 8, 3, padding=1), frames=8),
    Case('odd', conv(3, 23, (1, 3, 3), bias=False), frames=9),
    Case('in time', conv(9, 13, (3, 1, 1), padding=(1, 0, 0)), frames=7),
    Case('strides', conv(2, 6, 3, stride=2), frames=11),
    Case('strides in time', conv(8, 16, (3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0)), frames=8),
    Case('pointwise', conv(8, 40, 1, stride=(1, 2, 2)), frames=4),
    Case('dilation', conv(2, 5, 3, dilation=2, padding=(2, 1, 3)), frames=7),
    Case('one frame', conv(3, 4, 1), frames=1),
    Case('one channel', conv(3, 1, 1), frames=4),
    Case('many channels', conv(3, 150, 1), frames=2),
    Case('vectors', conv(3, 27, 1), multiple=4),
    Case('groups', conv(6, 9, (1, 3, 3), groups=3)),
    Case('depthwise', conv(10, 10, 3, padding=1, groups=10), frames=5),
    Case('four options', conv(2, 16, 1), 9, 3, 4, 4),
    Case('channel only', conv(2, 6, 3), temporal=1),
    Case('temporal only', conv(2, 6, 3), channel=1),
    Case('2-D', conv(4, 7, 3, stride=2), rank=2),
    Case('2-D, groups', conv(4, 6, 3, groups=2), frames=5, rank=2),
]
CASES_ALONE = [case for case in CASES if case.name in ('pointwise', 'many channels')]
"""Of widths that no layer of tests/equality has."""


def layer_of(case, dtype=torch.float32):
    """A layer whose gate is of several minds, and switches options off for some clips."""
    layer = build(case, dtype)
    gate = layer.gate
    nn.init.normal_(gate.fc1.weight, std=2.0)
    nn.init.normal_(gate.fc2.weight, std=0.8)
    nn.init.normal_(gate.fc2.bias, std=0.3)
    gate.bn.running_mean.normal_()
    gate.bn.running_var.uniform_(0.5, 2)
    gate.bn.weight.data.normal_()
    gate.bn.bias.data.normal_()
    fold_norm_of_gate(gate)
    return layer.to(DEVICE)


def input_of(case, n, dtype=torch.float32):
    """Clips, or their frames, channels innermost."""
    x = torch.randn(n, case.conv['in_channels'], case.frames, 5, 6).to(DEVICE, dtype)
    x = x * torch.rand(n, 1, 1, 1, 1, device=DEVICE, dtype=dtype) * 3
    if case.rank == 2:
        x = x.transpose(1, 2).flatten(0, 1)
        return x.contiguous(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last_3d)


def expected_of(layer, x, residual=None, relu=False):
    """What the definition makes of an input, and charges."""
    layer.decisions = ()
    y = layer(x)
    (decision,), layer.decisions = layer.decisions, None
    y = y if residual is None else y + residual
    return y.relu() if relu else y, decision


def check(found, expected, tolerance=1e-4):
    (y, decision), (wanted, theirs) = found, expected
    assert y.shape == wanted.shape
    assert (y.float() - wanted.float()).abs().max() <= tolerance * wanted.float().abs().max()
    for own, other in zip(decision.weights, theirs.weights, strict=True):
        torch.testing.assert_close(own, other.float(), rtol=1e-4, atol=1e-5)
        assert torch.equal(own > 0, other > 0)
    assert torch.equal(charge([decision]), charge([theirs]))


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
def test_mixed_policies_with_what_follows(case):
    layer, x = layer_of(case), input_of(case, 2)
    residual = torch.randn_like(layer(x))
    executor = create(record_of(layer, relu=True))
    check(executor(x, residual), expected_of(layer, x, residual, relu=True))


# tests/equality has the others.
@pytest.mark.parametrize('case', CASES_ALONE, ids=lambda case: case.name)
def test_mixed_policies(case):
    layer, x = layer_of(case), input_of(case, 2)
    executor, expected = create(record_of(layer)), expected_of(layer, x)
    for _ in range(2):  # the first call leaves its counters as it found them
        check(executor(x), expected)


IN_USE = [
    *(((0,), (0,)), ((1,), (1,)), ((2,), (2,))),
    *(((1, 2), (1, 2)), ((0, 2), (0, 2)), ((1,), (0, 1))),
]


@pytest.mark.parametrize(
    ('case', 'in_use'),
    [
        *((CASES[1], in_use) for in_use in IN_USE),
        *zip((CASES[2], CASES[7], CASES[-2]) * 2, IN_USE, strict=True),
    ],
    ids=lambda value: getattr(value, 'name', str(value)),
)
def test_options_in_use(case, in_use):
    layer, x = layer_of(case), input_of(case, 2)
    layer.channel_options.use(in_use[0])
    layer.temporal_options.use(in_use[1])
    residual = torch.randn_like(layer(x))
    executor = create(record_of(layer, relu=True))
    check(executor(x, residual), expected_of(layer, x, residual, relu=True))


@pytest.mark.parametrize('each', [True, False], ids=['each clip', 'all clips'])
@pytest.mark.parametrize('case', [CASES[1], CASES[-2]], ids=lambda case: case.name)
def test_forced_options(case, each):
    layer, x = layer_of(case), input_of(case, 3)
    forced = [[0, 1], [2, 0], [3, 5]] if each else [[1, 2]]
    layer.forced = torch.tensor(forced, device=DEVICE)
    check(create(record_of(layer))(x, forced=layer.forced), expected_of(layer, x))
    with pytest.raises(ValueError, match='expected a batch of 2 clips, got 3'):
        create(record_of(layer))(x, forced=torch.zeros(2, 2, device=DEVICE, dtype=torch.long))


@pytest.mark.parametrize('rank', [2, 3])
def test_stock_convolutions(rank):
    for outputs, groups, bias in ((5, 1, True), (16, 1, False), (6, 2, True), (7, 1, False)):
        kind = nn.Conv2d if rank == 2 else nn.Conv3d
        stock = kind(4, outputs, 3, stride=2, padding=1, groups=groups, bias=bias).to(DEVICE)
        case = Case('', conv(4, outputs, 3), rank=rank)
        x = input_of(case, 2)
        y = stock(x)
        residual = torch.randn_like(y)
        found, macs = create(record_of(stock))(x)
        assert macs == y.numel() * stock.weight[0].numel()
        torch.testing.assert_close(found, y, rtol=1e-4, atol=1e-5)
        found, _ = create(record_of(stock, relu=True))(x, residual)
        torch.testing.assert_close(found, (y + residual).relu(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('case', [CASES[0], CASES[1], CASES[-2]], ids=lambda case: case.name)
def test_half_precision(case, dtype):
    layer, x = layer_of(case), input_of(case, 2, dtype)
    expected, _ = expected_of(layer, x.float())
    record = record_of(copy.deepcopy(layer).to(dtype))
    y, _ = create(record)(x)
    assert y.dtype == dtype
    # Its gate's parameters were rounded, which weights tell.
    assert (y.float() - expected).abs().max() <= 0.1 * expected.abs().max()


def test_autocast():
    case = CASES[1]
    layer, x = layer_of(case), input_of(case, 2)
    expected = expected_of(layer, x)
    executor = create(record_of(layer))
    with torch.autocast(DEVICE, torch.bfloat16):
        y, decision = executor(x)
    assert y.dtype == torch.bfloat16
    check((y, decision), expected, 0.05)


def test_other_layouts_and_any_gate():
    """What lies otherwise is laid out, and gates of other classes are called."""
    case = CASES[2]
    layer, x = layer_of(case), input_of(case, 2)
    expected = expected_of(layer, x)
    check(create(record_of(layer))(x.contiguous()), expected)
    check(create(record_of(layer))(x.transpose(3, 4).contiguous().transpose(3, 4)), expected)
    layer.gate.register_forward_hook(lambda *_: None)
    executor = create(record_of(layer))
    assert executor._gate is None
    check(executor(x), expected)


def test_clips_of_another_length():
    case = CASES[2]
    layer = layer_of(case)
    layer.temporal_options.use((2,))
    executor = create(record_of(layer))
    for frames in (7, 1, 2, 5):
        x = input_of(Case('', case.conv, frames=frames), 2)
        check(executor(x), expected_of(layer, x))


def test_zeros_behind_odd_channels_are_read_and_not_copied():
    first, second = nn.Conv3d(8, 23, 1).to(DEVICE), nn.Conv3d(23, 8, 1).to(DEVICE)
    x = input_of(Case('', conv(8, 23, 1)), 2)
    y, _ = create(record_of(first))(x)
    memory = lying.memory_of(y, 1, torch.float32)
    assert memory.data_ptr() == y.data_ptr()
    assert memory.shape[-1] == 24
    assert not memory[..., 23:].any()
    found, _ = create(record_of(second))(y)
    torch.testing.assert_close(found, second(first(x)), rtol=1e-4, atol=1e-5)
    sliced = y[:, :, 1:]  # nobody knows what follows it
    assert lying.memory_of(sliced, 1, torch.float32).data_ptr() != sliced.data_ptr()


def test_what_is_not_finite():
    """Options without a share are not read; weights that are no numbers are not passed over."""
    case = CASES[0]
    layer, x = layer_of(case), input_of(case, 2)
    executor = create(record_of(layer))
    x[0, :, 3] = float('nan')
    y, _ = executor(x, forced=torch.tensor([[0, 2]], device=DEVICE))
    wanted = F.conv3d(x, layer.weight, layer.bias, layer.stride, layer.padding)[:, :, ::4]
    assert torch.equal(y[:, :, ::4].isnan(), wanted.isnan())
    assert not y[1].isnan().any()
    y, decision = executor(x)
    assert y[0].isnan().all()
    assert not y[1].isnan().any()
    assert decision.weights.channel[0].isnan().any()


def test_no_clips():
    case = CASES[0]
    layer = layer_of(case)
    y, decision = create(record_of(layer))(input_of(case, 0))
    assert y.shape == (0, 8, 8, 5, 6)
    assert decision.weights.channel.shape == (0, 3)


def test_what_can_be_served():
    layer, x = layer_of(CASES[0]), input_of(CASES[0], 1)
    executor = create(record_of(layer))
    assert executor(x.double()) is None
    with torch.enable_grad():
        assert executor(x) is None
    assert create(record_of(layer.double())) is None
