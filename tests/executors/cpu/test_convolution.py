# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Compiled code: what it serves, what it reads and counts; what it computes, all executors do."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarking.memory import state_tensors
from vared2_mmaction.deploy.fold import fold_norm_of_gate
from vared2_mmaction.executors.cpu import packed
from vared2_mmaction.executors.cpu.convolution import native_gate
from vared2_mmaction.executors.cpu.library import library
from vared2_mmaction.ops import COLUMNS, Decision, SoftModulationGate, charge
from vared2_mmaction.ops.gate import descriptor

from ...compiling import needs_compiler
from ...ops.layers import CASES, build
from ..layers import (
    FEW,
    IN_2D,
    LAYERS,
    MANY,
    TILED,
    Given,
    clips,
    executed,
    folded,
    one_hot,
    skip_without_tiles,
)

pytestmark = needs_compiler


@pytest.mark.parametrize('case', LAYERS, ids=lambda case: case.name)
def test_layers_are_served(case):
    skip_without_tiles(case)
    layer, x = folded(case), clips(case, 2)
    conv = executed(layer)
    with torch.no_grad():
        assert conv.executor(layer.from_clips(x)) is not None


@pytest.mark.parametrize('name', ['depthwise', 'groups', 'circular', 'plain'])
def test_layers_without_compiled_code(name):
    layer = build(next(case for case in CASES if case.name == name), torch.float32)
    assert executed(layer).executed_by == 'eager'


def test_inputs_without_compiled_code():
    case = IN_2D[0]
    conv, x = executed(folded(case)), clips(case, 2)
    with torch.no_grad():
        expected = conv(x)
        for served in (x, x.contiguous(), torch.cat((x, x), -1)[..., :8]):
            torch.testing.assert_close(conv.executor(served)[0], expected)
        with torch.autocast('cpu', torch.bfloat16):
            assert conv.executor(x) is None
        assert conv.executor(x.double()) is None
    assert conv.executor(x) is None  # gradients may be asked for
    with torch.inference_mode():
        torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize('motion', [True, False])
@pytest.mark.parametrize('numbers', [(3, 2), (1, 3), (4, 4)], ids=str)
@pytest.mark.parametrize('shape', [(3, 5, 6, 9, 9), (1, 600, 1, 2, 3), (2, 300, 4, 7, 7)], ids=str)
def test_gates(shape, numbers, motion):
    gate = SoftModulationGate(shape[1], *numbers, 6, motion=motion).eval()
    nn.init.normal_(gate.fc2.weight, std=2)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        expected = gate.weigh(descriptor(x, motion)).split(numbers, 1)
        fold_norm_of_gate(gate)
        found = native_gate(gate).weigh(x, 1)
        for v, wanted in zip(found.unbind(1), expected, strict=True):
            torch.testing.assert_close(v[:, : wanted.shape[1]], wanted, rtol=1e-4, atol=1e-5)
            assert not v[:, wanted.shape[1] :].any()
        narrow = x[:, :2].contiguous(memory_format=torch.channels_last_3d)
        with pytest.raises(RuntimeError, match=f'a gate for {shape[1]} channels got 2'):
            native_gate(gate).weigh(narrow, 1)


def test_what_is_counted_is_what_runs():
    case = IN_2D[0]
    conv, x = executed(folded(case)), clips(case, 1)
    for channel, temporal in ((0, 0), (1, 1), (2, 0)):
        conv.forced = torch.tensor([[channel, temporal]])
        with torch.no_grad():
            conv(x)  # plans, which takes a convolution of its own
            conv.decisions = ()
            with FlopCounterMode(display=False) as counter:
                conv(x)
        charges = conv.decisions[0][0].tolist()
        assert charges[COLUMNS.index('executed')] == counter.get_total_flops() // 2
        assert charges[-2:] == [channel, temporal]


@pytest.mark.parametrize('options', [(0, 0), (1, 1)], ids=str)
@pytest.mark.parametrize('executor', ['cpu', 'eager'])
def test_gates_with_nothing_to_choose_are_neither_asked_nor_charged(executor, options):
    case = IN_2D[0]
    layer, x = folded(case), clips(case, 2)
    found = []
    for forced in (torch.tensor([options]), None):
        if forced is None:
            layer.channel_options.use(options[:1])
            layer.temporal_options.use(options[1:])
        conv = executed(layer, executor)
        conv.forced = forced
        conv.gate.fc1.register_forward_hook(lambda *_: pytest.fail('the gate was asked'))
        with torch.no_grad():
            y = conv(x)
        (of_run,) = conv.decisions
        charges = charge([of_run])[:, 0] if isinstance(of_run, Decision) else of_run
        found.append((y, charges))
    (expected, charged), (y, charges) = found
    torch.testing.assert_close(y, expected)
    charged[:, COLUMNS.index('overhead')] -= layer.gate.macs()
    assert torch.equal(charges, charged)


@pytest.mark.parametrize('number', [1, 3])
@pytest.mark.parametrize('name', ['pointwise', 'spatial', 'wide', 'volume'])
def test_what_is_left_out_is_not_read(name, number):
    """Kernels of channels that are left out, and frames that none of the others needs."""
    case = next(case for case in TILED if case.name == f'{name}, tiled')
    skip_without_tiles(case)
    layer, x = folded(case), clips(case, number)
    layer.gate = Given(0)
    layer.gate.weights = one_hot(layer, 1, 1, number)
    with torch.no_grad():
        expected = executed(layer)(x)
        layer.weight[layer.channel_options.kept[1] :] = math.nan
        if layer.kernel_size[0] == 1:
            x[:, :, 1::2] = math.nan
        found = executed(layer)(x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize('threads', [1, 3, 16])
def test_tiles_of_any_number_of_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        chosen = ('spatial, tiled', 'temporal, tiled', 'wide, tiled')
        for case in (case for case in TILED if case.name in chosen):
            layer = folded(case)
            conv = executed(layer)
            for number, height in ((1, 3), (2, 40)):
                x = clips(case, number, height)
                for options in ((0, 0), (1, 1), (2, 0)):
                    layer.forced = conv.forced = torch.tensor([options])
                    with torch.no_grad():
                        torch.testing.assert_close(conv(x), layer(x), rtol=1e-4, atol=1e-4)
    finally:
        torch.set_num_threads(before)


def test_kernels_of_tiles_are_counted():
    case = TILED[0]
    conv, x = executed(folded(case)), clips(case, 1)
    counted = []
    for policy in ((2, 2), (0, 0)):  # small maps, which tiles make whole as well
        conv.forced = torch.tensor([policy])
        with torch.no_grad():
            conv(x)
        counted.append([t.shape for t in state_tensors(conv) if t.dim() == 4])
    if not library().can_tile(MANY):
        pytest.skip('this processor has no products of matrices for tiles')
    assert counted == [[(1, 9, MANY, 64)]] * 2


def test_too_many_shapes(monkeypatch):
    monkeypatch.setattr(packed, 'MAX_SHAPES', 2)
    case = IN_2D[0]
    layer, found = folded(case), []
    conv = executed(layer)
    with torch.no_grad():
        for height in (3, 4, 5, 3):
            conv.forced = layer.forced = torch.tensor([[0, 0]])
            x = clips(case, 1, height)
            found.append(conv.executor(x, None, conv.forced) is not None)
            torch.testing.assert_close(conv(x), layer(x), rtol=1e-4, atol=1e-4)
    assert found == [True, True, False, True]


def test_bad_input_is_refused():
    case = next(case for case in IN_2D if case.name == 'frames')
    layer, x = folded(case), clips(case, 2)
    frames, conv = layer.from_clips(x), executed(layer)
    with torch.no_grad():
        conv.forced = torch.zeros(1, 2, dtype=torch.long)
        wide = torch.randn(12, 7, 7, 8).contiguous(memory_format=torch.channels_last)
        with pytest.raises(RuntimeError, match='expected 6 channels, got 7'):
            conv(wide)
        with pytest.raises(RuntimeError, match='a residual of another shape'):
            conv(frames, frames)
        small = torch.randn(1, FEW, 4, 4, 8).contiguous(memory_format=torch.channels_last_3d)
        conv = executed(folded(next(case for case in IN_2D if case.name == 'dilated')))
        with pytest.raises(RuntimeError, match='clips of 4 x 4 x 8 are smaller than the kernels'):
            conv(small)
        conv = executed(folded(next(case for case in IN_2D if case.name == 'spatial, strided')))
        with pytest.raises(RuntimeError, match='clips of 4 x 4 x 2 are smaller than the kernels'):
            conv(small[..., :2])
