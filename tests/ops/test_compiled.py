# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Compiled code computes what layers and gates in Python do, and leaves alone what it cannot."""

import copy
import dataclasses
import math
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarking.memory import state_tensors
from vared2_mmaction.ops import (
    Modulation,
    SoftModulationGate,
    collect,
    compiled_blend,
    packed,
)
from vared2_mmaction.ops.answer import fetch
from vared2_mmaction.ops.compiled import CompiledConv, CompiledGate, is_compilable
from vared2_mmaction.ops.compiled_blend import serves
from vared2_mmaction.ops.decision import COLUMNS, ChargedDecision, charge_on_host
from vared2_mmaction.ops.epilogue import Epilogue
from vared2_mmaction.ops.forced import Forced
from vared2_mmaction.ops.fused import fold_norm
from vared2_mmaction.ops.fused_gate import FusedGate
from vared2_mmaction.ops.library import build_folder, can_compile, library
from vared2_mmaction.ops.plan import Plans

from ..compiling import needs_compiler
from .layers import CASES, Case, build, every_modulation

IN_2D = [
    Case('spatial', {'kernel_size': (1, 3, 3), 'padding': (0, 1, 1)}, 7),
    Case('spatial, strided', {'kernel_size': (1, 3, 3), 'stride': (2, 2, 2)}, 9),
    Case('temporal', {'kernel_size': (3, 1, 1), 'padding': (1, 0, 0)}, 8),
    Case('temporal, strided', {'kernel_size': (3, 1, 1), 'stride': (2, 1, 1)}, 9),
    Case('pointwise', {'kernel_size': 1, 'bias': False}, 6),
    Case('pointwise, strided', {'kernel_size': 1, 'stride': 2}, 6),
    Case('dilated', {'kernel_size': (1, 3, 3), 'dilation': (1, 2, 1)}, 5),
    Case('odd', {'kernel_size': 1, 'out_channels': 23}, 7, 3, 4, 4),
    Case('one frame', {'kernel_size': 1}, 1),
    Case('channel only', {'kernel_size': 1}, 6, temporal=1),
    Case('vectors', {'kernel_size': 1, 'out_channels': 27}, 6, multiple=4),
    Case('frames', {'kernel_size': 3, 'padding': 1}, 6, rank=2),
    Case('frames, strided', {'kernel_size': 3, 'stride': 2}, 5, rank=2),
]
# Few input channels are convolved by oneDNN, more of them tile by tile where that takes less time.
FEW, MANY = 6, 20
TILED = [
    *IN_2D,
    Case('wide', {'kernel_size': (1, 3, 3), 'out_channels': 150, 'padding': (0, 1, 1)}, 6),
    Case('wide, temporal', {'kernel_size': (3, 1, 1), 'out_channels': 150}, 6),
    Case('padded, strided', {'kernel_size': 3, 'stride': 2, 'padding': 1}, 9),
    Case('padded frames, strided', {'kernel_size': 5, 'stride': 3, 'padding': 2}, 5, rank=2),
    Case('volume', {'kernel_size': 3, 'padding': 1}, 6),
    Case('volume, strided', {'kernel_size': 3, 'stride': 2, 'dilation': (1, 2, 3)}, 9),
    Case('volume, far', {'kernel_size': (1, 5, 5), 'padding': (2, 9, 9), 'dilation': 3}, 4),
]


def _with_inputs(case, inputs, name):
    conv = {'in_channels': inputs, 'out_channels': 10, **case.conv}
    return dataclasses.replace(case, name=name, conv=conv)


IN_2D = [_with_inputs(case, FEW, case.name) for case in IN_2D]
TILED = [_with_inputs(case, MANY, f'{case.name}, tiled') for case in TILED]
LAYERS = [*IN_2D, *TILED]


def fused(case, change=None):
    """A layer of a fused network, with compiled code."""
    layer = build(case, torch.float32)
    channels = layer.out_channels
    norm = (nn.BatchNorm3d if case.rank == 3 else nn.BatchNorm2d)(channels).eval()
    nn.init.uniform_(norm.running_mean, -1, 1)
    nn.init.uniform_(norm.weight, 0.5, 2)
    if change is not None:
        change(norm)
    assert fold_norm(layer, norm) == (change is None)
    layer.gate.fold_norm()
    layer.plans, layer.compiled = Plans(), CompiledConv()
    layer.fused_gate = FusedGate(layer.gate, CompiledGate())
    return layer.requires_grad_(False)


def clips(case, number, height=7):
    x = torch.randn(number, case.conv['in_channels'], case.frames, height, 8)
    return x.contiguous(memory_format=torch.channels_last_3d)


def _needs_tiles(case):
    if case.name.startswith(('volume', 'padded, ')) and not library().can_tile(MANY):
        pytest.skip('this processor has no products of matrices for tiles')


def by_python(layer, x, modulation, epilogue):
    other = copy.deepcopy(layer)
    other.compiled = None
    return other.modulate(x, modulation, epilogue)[0]


def zero(norm):
    norm.weight.data[2] = 0


@needs_compiler
@pytest.mark.parametrize('height', [7, 40], ids=['gathered', 'in runs'])
@pytest.mark.parametrize('change', [None, zero], ids=['folded', 'not folded'])
@pytest.mark.parametrize('case', LAYERS, ids=lambda case: case.name)
def test_layers(case, change, height):
    """Every policy, blends, batches of several policies; with and without what follows."""
    layer, x = fused(case, change), clips(case, 4, height)
    _needs_tiles(case)
    assert is_compilable(layer)
    blends = [Modulation(*(v.float() for v in m)) for m in every_modulation(layer, x)]
    first = [Modulation(*((v > 0) & (v.cumsum(1) == v) for v in m)) for m in blends]
    single = [Modulation(*(v.float() for v in m)) for m in first]
    parts = [(blends if row % 2 else single)[row * 5 % len(blends)] for row in range(4)]
    rows = zip(*(([v[row] for v in part]) for row, part in enumerate(parts)), strict=True)
    mixed = Modulation(*map(torch.stack, rows))
    # Of the same dearest options some clips are blended and some are not.
    uneven = Modulation(
        *(torch.cat((v[:2], w[2:])) for v, w in zip(blends[0], single[0], strict=True))
    )
    with torch.no_grad():
        residual = torch.randn_like(by_python(layer, x, mixed, Epilogue()))
        residual = residual.contiguous(memory_format=torch.channels_last_3d)
        for modulation in (*blends, *single, mixed, uneven):
            answer = fetch(modulation)
            for epilogue in (Epilogue(), Epilogue(residual, True), Epilogue(relu=True)):
                found = layer.compiled.modulate(layer, x, answer.weights, epilogue)
                assert found is not None
                assert found.is_contiguous(memory_format=torch.channels_last_3d)
                expected = by_python(layer, x, answer.modulation, epilogue)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
                layer.skip = False
                masked = layer.compiled.modulate(layer, x, answer.weights, epilogue)
                layer.skip = True
                torch.testing.assert_close(masked, expected, rtol=1e-4, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize('forced', [None, torch.tensor([[1, 1]]), torch.tensor([[0, 2], [5, 0]])])
@pytest.mark.parametrize('case', LAYERS, ids=lambda case: case.name)
def test_gate_and_convolution_in_one_call(case, forced):
    layer, x = fused(case), clips(case, 2)
    _needs_tiles(case)
    nn.init.normal_(layer.gate.fc2.weight, std=2)
    layer.fused_gate = FusedGate(layer.gate, CompiledGate())
    layer.forced = None if forced is None else Forced(forced)
    x = x if case.rank == 3 else layer._from_clips(x)
    other = copy.deepcopy(layer)
    other.compiled, other.fused_gate = None, FusedGate(layer.gate)
    with torch.no_grad():
        with collect() as decisions:
            y = layer(x)
        with collect() as expected:
            again = other(x)
        assert layer.compiled.forward(layer, x, None) is not None
    torch.testing.assert_close(y, again, rtol=1e-4, atol=1e-4)
    found, wanted = (d.layers[layer.layer_name][0] for d in (decisions, expected))
    assert isinstance(found, ChargedDecision)
    assert list(map(tuple, found.charges)) == charge_on_host(wanted)


@needs_compiler
@pytest.mark.parametrize('motion', [True, False])
@pytest.mark.parametrize('numbers', [(3, 2), (1, 3), (4, 4)], ids=str)
@pytest.mark.parametrize('shape', [(3, 5, 6, 9, 9), (1, 600, 1, 2, 3), (2, 300, 4, 7, 7)], ids=str)
def test_gates(shape, numbers, motion):
    gate = SoftModulationGate(shape[1], *numbers, 6, motion=motion).eval()
    nn.init.normal_(gate.fc2.weight, std=2)
    gate.fold_norm()
    fused, twin = FusedGate(gate, CompiledGate()), FusedGate(gate)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        v = fused.compiled(fused, x)
        torch.testing.assert_close(v, twin.weigh(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fused.weigh(x.contiguous()), v, rtol=1e-4, atol=1e-5)
        with pytest.raises(RuntimeError, match=f'a gate for {shape[1]} channels got 2'):
            fused.weigh(x[:, :2].contiguous(memory_format=torch.channels_last_3d))


@needs_compiler
@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
def test_blending_with_gradients(case):
    """Outputs and gradients are those of the general way."""
    layer = build(case, torch.float32)
    x = clips(case, 3)
    for modulation in every_modulation(layer, x):
        weights = [v.float() for v in modulation]
        found = []
        for layer.compiled_blend in (False, True):
            layer.zero_grad()
            v, inputs = [w.clone().requires_grad_() for w in weights], x.clone().requires_grad_()
            y, _ = layer.modulate(inputs, Modulation(*v))
            torch.manual_seed(1)
            y.backward(torch.randn(y.shape))  # not channels-last
            own = [p.grad for n, p in layer.named_parameters() if not n.startswith('gate.')]
            # What is off has no share, and its gradient goes nowhere.
            of_weights = [None if w.grad is None else w.grad * (w > 0) for w in v]
            found.append([y.detach(), inputs.grad, *of_weights, *own])
        for a, b in zip(*found, strict=True):
            if a is None or b is None:  # of what is not used
                assert a is None or a.abs().max() <= 1e-5
                assert b is None or b.abs().max() <= 1e-5
            else:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_blending_is_compiled_where_it_can_be():
    plain, depthwise, weights = (
        build(next(c for c in CASES if c.name == name), torch.float32)
        for name in ('plain', 'depthwise', 'not normalised')
    )
    x = clips(CASES[0], 2)
    y = plain._whole(x)
    assert serves(y)
    assert not serves(y.double())
    assert not serves(y.contiguous())
    assert not serves(y[:, :, ::2])
    layers = {'plain': plain, 'depthwise': depthwise, 'not normalised': weights}
    calls = []
    for name, layer in layers.items():
        layer.compiled_blend = True
        layer.channel_options.register_forward_hook(lambda *_, name=name: calls.append(name))
        case = next(c for c in CASES if c.name == name)
        x = clips(case, 2)
        layer.modulate(x, Modulation(*(torch.full((2, n), 0.5) for n in layer.num_options(x))))
    assert calls == ['depthwise', 'not normalised']


@needs_compiler
@pytest.mark.parametrize(('channel', 'temporal'), [(1, 0), (0, 2), (1, 1), (0, 0)])
def test_single_options_are_rebuilt_by_compiled_code_in_training(channel, temporal, monkeypatch):
    case, calls = CASES[0], []
    layer, x = build(case, torch.float32), clips(case, 2)
    expected = layer.modulate(x, one_hot(layer, channel, temporal, 2))[0]
    layer.compiled_blend = True

    def blend(*args):
        calls.append(args[2])
        return original(*args)

    original = compiled_blend.blend
    monkeypatch.setattr(compiled_blend, 'blend', blend)
    found = layer.modulate(x, one_hot(layer, channel, temporal, 2))[0]
    torch.testing.assert_close(found, expected)
    assert calls == ([] if channel == temporal == 0 else [(None, None)])
    with torch.no_grad():
        layer.modulate(x, one_hot(layer, channel, temporal, 2))
    assert len(calls) <= 1  # without gradients there is a faster way


def one_hot(layer, channel, temporal, clips):
    numbers = len(layer.channel_options.kept), layer.temporal_options.num_options
    pairs = zip((channel, temporal), numbers, strict=True)
    return Modulation(*(torch.eye(number)[[i] * clips] for i, number in pairs))


@needs_compiler
def test_what_is_counted_is_what_runs():
    case = IN_2D[0]
    layer, x = fused(case), clips(case, 1)
    for channel, temporal in ((0, 0), (1, 1), (2, 0)):
        layer.forced = Forced(torch.tensor([[channel, temporal]]))
        with torch.no_grad(), collect() as decisions:
            layer(x)  # plans, which takes a convolution of its own
            with FlopCounterMode(display=False) as counter:
                layer(x)
        charges = decisions.layers[layer.layer_name][0].charges[0]
        assert charges[COLUMNS.index('executed')] == counter.get_total_flops() // 2
        assert charges[-2:] == [channel, temporal]


@needs_compiler
@pytest.mark.parametrize('number', [1, 3])
@pytest.mark.parametrize('name', ['pointwise', 'spatial', 'wide', 'volume'])
def test_what_is_left_out_is_not_read(name, number):
    """Kernels of channels that are left out, and frames that none of the others needs."""
    case = next(case for case in TILED if case.name == f'{name}, tiled')
    _needs_tiles(case)
    layer, x = fused(case), clips(case, number)
    weights = [([0.0, 1, 0], [0.0, 1, 0])] * number
    with torch.no_grad():
        expected = layer.compiled.modulate(layer, x, weights, Epilogue())
        layer.weight[layer.channel_options.kept[1] :] = math.nan
        if layer.kernel_size[0] == 1:
            x[:, :, 1::2] = math.nan
        found = layer.compiled.modulate(layer, x, weights, Epilogue())
    assert torch.equal(found, expected)


@needs_compiler
@pytest.mark.parametrize('threads', [1, 3, 16])
def test_tiles_of_any_number_of_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        chosen = ('spatial, tiled', 'temporal, tiled', 'wide, tiled')
        for case in (case for case in TILED if case.name in chosen):
            for number, height in ((1, 3), (2, 40)):
                layer, x = fused(case), clips(case, number, height)
                for options in ((0, 0), (1, 1), (2, 0)):
                    modulation = Modulation(*(torch.eye(3)[[o] * number] for o in options))
                    with torch.no_grad():
                        found = layer.modulate(x, modulation)[0]
                    expected = by_python(layer, x, modulation, Epilogue())
                    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_kernels_of_tiles_are_counted():
    case = TILED[0]
    layer, x = fused(case), clips(case, 1)
    counted = []
    for policy in ((2, 2), (0, 0)):  # small maps, which tiles make whole as well
        layer.forced = Forced(torch.tensor([policy]))
        with torch.no_grad():
            layer(x)
        counted.append([t.shape for t in state_tensors(layer) if t.dim() == 4])
    if not library().can_tile(MANY):
        pytest.skip('this processor has no products of matrices for tiles')
    packed = (1, 9, MANY, 64)
    assert counted == [[packed]] * 2


@needs_compiler
def test_what_there_is_no_compiled_code_for():
    case = IN_2D[0]
    layer, x = fused(case), clips(case, 2)
    with torch.no_grad():
        expected = layer(x)
        assert layer.compiled.forward(layer, x, None) is not None
        assert layer.compiled.forward(layer, x.contiguous(), None) is None
        assert layer.compiled.forward(layer, x[..., ::2], None) is None
        assert layer.compiled.forward(layer, x, expected.contiguous()) is None
        torch.testing.assert_close(layer(x.contiguous()), expected, rtol=1e-4, atol=1e-4)
        with torch.autocast('cpu', torch.bfloat16):
            assert layer.compiled.forward(layer, x, None) is None
            assert layer(x).dtype == torch.bfloat16
    assert layer.compiled.forward(layer, x, None) is None  # gradients may be asked for
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected)


@needs_compiler
@pytest.mark.parametrize('name', ['depthwise', 'groups', 'circular', 'plain', 'not normalised'])
def test_layers_without_compiled_code(name):
    layer = build(next(case for case in CASES if case.name == name), torch.float32)
    assert not is_compilable(layer)  # not fused
    fold_norm(layer, nn.BatchNorm3d(layer.out_channels).eval())
    assert not is_compilable(layer)


@needs_compiler
@pytest.mark.parametrize(
    'change',
    [
        lambda layer: layer.weight.mul_(2),
        lambda layer: setattr(layer, 'weight', nn.Parameter(layer.weight * 2, False)),
        lambda layer: layer.bias.mul_(2),
        lambda layer: setattr(layer, 'bias', nn.Parameter(layer.bias * 2, False)),
        lambda layer: layer.factors_1_1.mul_(2),
    ],
    ids=['weight in place', 'weight', 'bias in place', 'bias', 'factors'],
)
def test_other_parameters_are_noticed(change):
    case = IN_2D[0]
    layer, x = fused(case), clips(case, 2)
    modulation = Modulation(*(torch.tensor([[0.0, 1, 0]] * 2) for _ in range(2)))
    weights = fetch(modulation).weights
    with torch.no_grad():
        before = layer.compiled.modulate(layer, x, weights, Epilogue())
        change(layer)
        y = layer.compiled.modulate(layer, x, weights, Epilogue())
        assert not torch.allclose(y, before)
        expected = by_python(layer, x, modulation, Epilogue())
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize('clone', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_compile_for_themselves(clone):
    case = IN_2D[0]
    layer, x = fused(case), clips(case, 2)
    with torch.no_grad():
        expected = layer(x)
        other = clone(layer)
        layer.weight.zero_()
        torch.testing.assert_close(other(x), expected)
        assert other.compiled.forward(other, x, None) is not None


@needs_compiler
def test_too_many_shapes(monkeypatch):
    monkeypatch.setattr(packed, 'MAX_SHAPES', 2)
    case = IN_2D[0]
    layer = fused(case)
    found = []
    with torch.no_grad():
        for height in (3, 4, 5, 3):
            found.append(layer.compiled.forward(layer, clips(case, 1, height), None) is not None)
            layer(clips(case, 1, height))
    assert found == [True, True, False, True]


@needs_compiler
def test_bad_input_is_refused():
    case = next(case for case in IN_2D if case.name == 'frames')
    layer, x = fused(case), clips(case, 2)
    frames = layer._from_clips(x)
    with torch.no_grad():
        with pytest.raises(ValueError, match=r'frames: expected frames \(N \* 6'):
            layer(frames[:-1])
        layer.forced = Forced(torch.zeros(3, 2))
        with pytest.raises(ValueError, match='expected a batch of 3 clips, got 2'):
            layer(frames)
        layer.forced = None
        layer.fused_gate.beta[0] = math.nan
        with pytest.raises(FloatingPointError, match='frames: the weights of the gate'):
            layer(frames)
        weights = [([0.0, 0, 0], [1.0, 0, 0])] * 2
        with pytest.raises(RuntimeError, match='all options of a clip are off'):
            layer.compiled.modulate(layer, x, weights, Epilogue())
        with pytest.raises(RuntimeError, match='weights of 2 clips, got 1'):
            layer.compiled.modulate(layer, x, [([1.0], [1.0])], Epilogue())
        wide = torch.randn(2, 7, *x.shape[2:]).contiguous(memory_format=torch.channels_last_3d)
        with pytest.raises(RuntimeError, match='expected 6 channels, got 7'):
            layer.compiled.modulate(layer, wide, [([1.0], [1.0])] * 2, Epilogue())
        with pytest.raises(RuntimeError, match='a residual of another shape'):
            layer.compiled.modulate(layer, x, [([1.0], [1.0])] * 2, Epilogue(x))
        small = torch.randn(1, FEW, 4, 4, 8).contiguous(memory_format=torch.channels_last_3d)
        layer = fused(next(case for case in IN_2D if case.name == 'dilated'))
        with pytest.raises(RuntimeError, match='clips of 4 x 4 x 8 are smaller than the kernels'):
            layer.compiled.modulate(layer, small, [([1.0], [1.0])], Epilogue())


def test_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', str(tmp_path))
    monkeypatch.setenv('CXX', str(tmp_path / 'none'))
    assert not can_compile()
    with pytest.raises(RuntimeError, match=r'compiled=True needs a C\+\+ compiler'):
        library.__wrapped__()


@needs_compiler
def test_a_build_that_was_killed_stops_nobody():
    library()
    lock = build_folder() / 'lock'  # of PyTorch, which waits until it is gone
    lock.touch()
    code = 'from vared2_mmaction.ops.library import library; library()'
    try:
        subprocess.run([sys.executable, '-c', code], check=True, timeout=300)
    finally:
        lock.unlink(missing_ok=True)


@needs_compiler
def test_sources_that_do_not_compile(monkeypatch, tmp_path):
    (tmp_path / 'wrong.cpp').write_text('#error wrong\n')
    monkeypatch.setattr('vared2_mmaction.ops.library.SOURCES', tmp_path)
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', str(tmp_path))
    with pytest.raises(RuntimeError, match='needs a C.. compiler(.|\n)*#error wrong'):
        library.__wrapped__()
