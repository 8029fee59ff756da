# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Executors compute, charge and refuse what the definition does."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from vared2_mmaction.executors import ExecutedConv
from vared2_mmaction.ops import Decision, Modulation, SoftModulationGate, charge

from ..compiling import EXECUTORS, needs_compiler
from ..ops.layers import CASES, every_modulation
from .cuda.device import DEVICE, needs_kernels
from .layers import (
    IN_2D,
    LAYERS,
    Given,
    as_input,
    clips,
    executed,
    folded,
    one_hot,
    skip_without_tiles,
)


def zero(norm):
    norm.weight.data[2] = 0


def charged(conv):
    """What the only run of a layer was charged."""
    (run,) = conv.decisions
    conv.decisions = ()
    return charge([run])[:, 0] if isinstance(run, Decision) else run


def batches(layer, x):
    """Weights of all policies, of every other one alone; of batches of several; and of clips of
    which some are mixed and others are not, for the same dearest options."""
    mixed = every_modulation(layer, x)
    first = [Modulation(*((v > 0) & (v.cumsum(1) == v) for v in m)) for m in mixed]
    single = [Modulation(*(v.float() for v in m)) for m in first]
    parts = [(mixed if row % 2 else single)[row * 5 % len(mixed)] for row in range(len(x))]
    rows = zip(*(([v[row] for v in part]) for row, part in enumerate(parts)), strict=True)
    uneven = (torch.cat((v[:2], w[2:])) for v, w in zip(mixed[0], single[0], strict=True))
    found = [*mixed[::2], *single[1::2], Modulation(*map(torch.stack, rows)), Modulation(*uneven)]
    return [of_all_options(layer, x, modulation) for modulation in found]


def of_all_options(layer, x, modulation):
    """Weights of options in use, and zeros for the others."""
    numbers, options = layer.num_options, layer.options_of(x.shape[2])[0]
    weights = [v.new_zeros(len(v), number) for v, number in zip(modulation, numbers, strict=True)]
    for v, given, which in zip(weights, modulation, options, strict=True):
        v[:, list(which)] = given
    return Modulation(*weights)


@pytest.mark.parametrize(
    ('executor', 'change', 'height'),
    [
        pytest.param('eager', zero, 7, id='eager, not folded'),
        pytest.param('cpu', zero, 7, id='gathered, not folded', marks=needs_compiler),
        pytest.param('cpu', None, 40, id='in runs, folded', marks=needs_compiler),
    ],
)
@pytest.mark.parametrize('case', LAYERS, ids=lambda case: case.name)
def test_every_policy_with_what_follows(case, change, height, executor):
    layer, x = folded(case, change), clips(case, 4, height)
    skip_without_tiles(case)
    layer.gate, weights = Given(layer.gate.macs()), batches(layer, x)
    layer.decisions, x = (), as_input(layer, x)
    convs = [executed(layer, executor), executed(layer, executor, relu=True)]
    with torch.no_grad():
        layer.gate.weights = weights[0]
        residual = torch.randn_like(layer(x)).contiguous(
            memory_format=torch.channels_last_3d if x.dim() == 5 else torch.channels_last
        )
        for layer.gate.weights in weights:
            layer.decisions = ()
            y = layer(x)
            expected = charge(layer.decisions)[:, 0]
            for conv, added, after in (
                (convs[0], None, y),
                (convs[1], residual, (y + residual).relu()),
                (convs[1], None, y.relu()),
            ):
                found = conv(x, added)
                torch.testing.assert_close(found, after, rtol=1e-4, atol=1e-4)
                assert torch.equal(charged(conv), expected)
                assert (conv.executor is None) == (executor == 'eager')


@pytest.mark.parametrize('executor', EXECUTORS)
@pytest.mark.parametrize('forced', [None, torch.tensor([[1, 1]]), torch.tensor([[0, 2], [5, 0]])])
@pytest.mark.parametrize('case', LAYERS, ids=lambda case: case.name)
def test_gates_and_forced_options(case, forced, executor):
    layer, x = folded(case), clips(case, 2)
    skip_without_tiles(case)
    conv, x = executed(layer, executor), as_input(layer, x)
    layer.forced = conv.forced = forced
    layer.decisions = ()
    with torch.no_grad():
        torch.testing.assert_close(conv(x), layer(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(charged(conv), charge(layer.decisions)[:, 0])


IN_USE = [((0, 1, 2), (1, 2)), ((1,), (0, 2)), ((2,), (1,)), ((0, 2), (2,))]


@pytest.mark.parametrize('executor', EXECUTORS)
@pytest.mark.parametrize('given', [True, False], ids=['given', 'native'])
@pytest.mark.parametrize('frames', [8, 1])
@pytest.mark.parametrize('in_use', IN_USE, ids=str)
def test_options_out_of_use(in_use, frames, given, executor):
    case = IN_2D[2]
    layer = folded(case)
    layer.channel_options.use(in_use[0])
    layer.temporal_options.use(in_use[1])
    x = clips(case, 6)[:, :, :frames].contiguous(memory_format=torch.channels_last_3d)
    if given:
        layer.gate = Given(layer.gate.macs())
        # Options that are out of use are on, and often no other.
        shape = (6, 3)
        layer.gate.weights = Modulation(
            *(torch.rand(shape) * (torch.rand(shape) < 0.4) for _ in 'ab')
        )
        for v in layer.gate.weights:
            v[:, 0] += ((v.sum(1) == 0) | (frames == 1)).float()
    conv, layer.decisions = executed(layer, executor), ()
    last = torch.tensor([[in_use[0][-1], in_use[1][-1]]])
    with torch.no_grad():
        for forced in (None, last, last + 1):
            layer.decisions, layer.forced, conv.forced = (), forced, forced
            torch.testing.assert_close(conv(x), layer(x), rtol=1e-4, atol=1e-4)
            assert torch.equal(charged(conv), charge(layer.decisions)[:, 0])


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
def test_eager_executes_what_no_other_does(case):
    layer, x = folded(case), clips(case, 3)
    layer.gate, weights = Given(layer.gate.macs()), batches(layer, x)
    conv, x = executed(layer), as_input(layer, x)
    with torch.no_grad():
        for layer.gate.weights in weights:
            layer.decisions = ()
            torch.testing.assert_close(conv(x), layer(x), rtol=1e-4, atol=1e-4)
            assert torch.equal(charged(conv), charge(layer.decisions)[:, 0])


@pytest.mark.parametrize('executor', [*EXECUTORS, pytest.param('cuda', marks=needs_kernels)])
def test_where_no_option_in_use_is_on_the_cheapest_takes_over(executor):
    case = IN_2D[0]
    layer, x = folded(case), clips(case, 3)
    layer.channel_options.use((1, 2))
    layer.temporal_options.use((0, 1))
    layer.gate.fc2.weight.zero_()  # the gate opens channel option 0 and temporal option 2 alone
    layer.gate.fc2.bias.copy_(torch.tensor([0.7, -5.0, -5.0, -5.0, -5.0, 0.7]))
    device = DEVICE if executor == 'cuda' else 'cpu'
    conv, x = executed(layer.to(device), executor), x.to(device)
    layer.decisions = ()
    with torch.no_grad():
        expected, found = layer(x), conv(x)
    assert conv.executed_by == executor
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    charges = charge(layer.decisions)[:, 0]
    assert charges[:, 3:].tolist() == [[2, 1]] * 3
    assert torch.equal(charged(conv), charges)


STOCK = [
    (nn.Conv3d(6, 4, (1, 3, 3), padding=(0, 1, 1)), (2, 6, 4, 8, 9)),
    (nn.Conv3d(20, 4, 3, stride=2, bias=False), (2, 20, 4, 8, 9)),
    (nn.Conv3d(6, 4, (3, 1, 1), padding=(1, 0, 0), groups=2), (2, 6, 4, 8, 9)),
    (nn.Conv3d(6, 4, 3, padding='same'), (2, 6, 4, 8, 9)),
    (nn.Conv2d(6, 4, 3, stride=2), (2, 6, 8, 9)),
    (nn.Conv2d(20, 4, 3, padding=1, padding_mode='reflect'), (2, 20, 8, 9)),
    (nn.Conv3d(6, 4, 1), (6, 4, 8, 9)),  # of a clip alone
]


@pytest.mark.parametrize('executor', EXECUTORS)
@pytest.mark.parametrize(('stock', 'shape'), STOCK, ids=lambda value: str(value))
def test_stock_convolutions(stock, shape, executor):
    x = torch.randn(shape)
    if x.dim() == 2 + len(stock.kernel_size):
        last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        x = x.contiguous(memory_format=last)
    conv = executed(stock, executor, relu=True)
    conv.decisions, conv.macs = None, 0
    with torch.no_grad():
        y = stock(x)
        residual = torch.randn_like(y)
        for _ in range(2):
            torch.testing.assert_close(conv(x, residual), (y + residual).relu())
    assert conv.macs == 2 * y.numel() * math.prod(stock.weight.shape[1:])
    assert not conv.is_dynamic


@pytest.mark.parametrize('executor', EXECUTORS)
@pytest.mark.parametrize('clone', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_told_for_themselves(clone, executor):
    case = IN_2D[0]
    conv, x = executed(folded(case), executor), clips(case, 2)
    with torch.no_grad():
        expected = conv(x)
        other = clone(conv)
        conv.weight.zero_()
        conv.float()
        torch.testing.assert_close(other(x), expected)
        assert other.executed_by == executor
        assert not torch.allclose(conv(x), expected)


@pytest.mark.parametrize('executor', EXECUTORS)
def test_gradients_other_types_and_layouts_are_served(executor):
    case = IN_2D[0]
    layer, x = folded(case), clips(case, 2)
    conv = executed(layer, executor)
    expected = layer(x)
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-4)  # with gradients
    x.requires_grad_()
    conv(x).sum().backward()
    assert x.grad.abs().sum() > 0
    with torch.no_grad():
        torch.testing.assert_close(conv(x.contiguous()), expected, rtol=1e-4, atol=1e-4)
        with torch.autocast('cpu', torch.bfloat16):
            assert conv(x).dtype == torch.bfloat16
        torch.testing.assert_close(
            conv.double()(x.double()).float(), expected, rtol=1e-4, atol=1e-4
        )
        found = conv.bfloat16()(x.bfloat16())
        torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.2)
        assert conv.executed_by == 'eager'
        assert conv.float()(x).dtype == torch.float32
        assert conv.executed_by == executor


@pytest.mark.parametrize('executor', EXECUTORS)
def test_bad_input_is_refused(executor):
    case = next(case for case in IN_2D if case.name == 'frames')
    layer, x = folded(case), clips(case, 2)
    conv, frames = executed(layer, executor), as_input(layer, x)
    with torch.no_grad():
        with pytest.raises(ValueError, match=r'frames: expected frames \(N \* 6'):
            conv(frames[:-1])
        conv.forced = torch.zeros(3, 2, dtype=torch.long)
        with pytest.raises(ValueError, match='expected a batch of 3 clips, got 2'):
            conv(frames)
        conv.forced = None
        conv.gate.fc2.bias[0] = math.nan
        conv.float()
        with pytest.raises(
            FloatingPointError, match='^frames: the weights of the gate are not fin'
        ):
            conv(frames)
        layer.gate = Given(0)
        conv = executed(layer, executor)
        layer.gate.weights = one_hot(layer, 0, 0, 2)
        layer.gate.weights.channel[1] = 0
        with pytest.raises(ValueError, match='an option that is on for every clip'):
            conv(frames)
        layer.gate.weights.channel[1] = math.inf
        with pytest.raises(
            FloatingPointError, match='^frames: the weights of the gate are not fin'
        ):
            conv(frames)
        layer.gate.weights = one_hot(layer, 0, 0, 2)
        with pytest.raises(RuntimeError):
            conv(torch.randn(12, 7, 7, 8).contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize('executor', EXECUTORS)
@pytest.mark.parametrize('motion', [True, False])
def test_hooks_of_gates_are_called_once(motion, executor):
    case, seen = IN_2D[0], []
    layer, x = folded(case), clips(case, 2)
    layer.gate = SoftModulationGate(6, 3, 3, motion=motion).eval()
    conv = ExecutedConv(layer)
    conv.execute_by(executor)
    conv.gate.register_forward_hook(lambda *args: seen.append(args))
    with torch.no_grad():
        for given in (x, x.contiguous()):
            conv(given)
    assert len(seen) == 2
