# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The skipping path equals the dense one, and costs what it says."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vared2_mmaction.ops import DynamicConv3d, Modulation, charge, collect

from .layers import CASES, Case, build, clips, dense, every_modulation

names = [case.name for case in CASES]


@pytest.mark.parametrize('case', CASES, ids=names)
@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=['f64', 'f32']
)
def test_training_and_skipping_equal_the_dense_function(case, dtype, tolerance):
    layer, x = build(case, dtype), clips(case, 3, dtype)
    for modulation in every_modulation(layer, x):
        expected = dense(layer, x, modulation)
        scale = expected.abs().max()
        for training in (True, False):
            y, _ = layer.train(training).modulate(x, modulation)
            assert y.shape == expected.shape
            assert (y - expected).abs().max() <= tolerance * scale


@pytest.mark.parametrize('case', CASES, ids=names)
def test_a_clip_alone_equals_the_clip_in_a_mixed_batch(case):
    layer, x = build(case), clips(case, 9)
    choices = every_modulation(layer, x)
    mixed = Modulation(
        *(torch.stack([choices[n % len(choices)][d][n] for n in range(9)]) for d in range(2))
    )
    y, decision = layer.modulate(x, mixed)
    charged = charge([decision])
    assert len(charged[:, 0, 3:].unique(dim=0)) == min(9, len(choices))
    for n in range(9):
        alone, own = layer.modulate(x[n, None], Modulation(*(v[n, None] for v in mixed)))
        torch.testing.assert_close(alone[0], y[n], rtol=1e-9, atol=1e-9)
        assert torch.equal(charge([own])[0], charged[n])


@pytest.mark.parametrize('case', CASES, ids=names)
def test_cost_is_what_the_flop_counter_counts(case):
    layer, x = build(case, torch.float32), clips(case, 1, torch.float32)
    stock = nn.Conv3d if case.rank == 3 else nn.Conv2d
    for modulation in every_modulation(layer, x):
        with FlopCounterMode(display=False) as counter:
            _, decision = layer.modulate(x, modulation)
        counts = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
        executed, static, overhead, *_ = charge([decision])[0, 0].tolist()
        cheap = counts.get('ChannelOptions', 0) + counts.get('TemporalOptions', 0)
        assert executed == counts['Global'] - cheap
        if case.kinds == ('depthwise', 'depthwise'):  # the counter does not see elementwise work
            assert overhead == cheap + layer.gate.macs()
    frames = x if case.rank == 3 else x.transpose(1, 2).flatten(0, 1)
    with FlopCounterMode(display=False) as counter:
        stock.forward.__get__(layer)(frames)
    assert static == counter.get_total_flops() // 2


@pytest.mark.parametrize('training', [True, False])
def test_a_mixed_batch_executes_no_more_than_its_clips_alone(training):
    case = CASES[0]
    layer, x = build(case, torch.float32), clips(case, 9, torch.float32)
    choices = every_modulation(layer, x)
    mixed = Modulation(*(torch.stack([m[d][n] for n, m in enumerate(choices)]) for d in range(2)))
    with FlopCounterMode(display=False) as counter:
        _, decision = layer.train(training).modulate(x, mixed)
    executed, static, *_ = charge([decision]).sum((0, 1)).tolist()
    assert counter.get_total_flops() // 2 == executed < static  # affine ones are not counted


def test_an_affine_pair_of_options_costs_one_operation_for_each_rebuilt_element():
    case = CASES[0]
    layer, x = build(case, torch.float32), clips(case, 1, torch.float32)
    for i, j in itertools.product(range(3), range(3)):
        v = [F.one_hot(torch.tensor([option]), 3).float() for option in (i, j)]
        y, decision = layer.modulate(x, Modulation(*v))
        z = layer._convolve(x, i, j)
        overhead = charge([decision])[0, 0, 2].item() - layer.gate.macs()
        assert overhead == y.numel() - z.numel()


def test_forward_keeps_stock_shapes_and_reports():
    for case in CASES:
        layer, x = build(case), clips(case, 2)
        stock = nn.Conv3d if case.rank == 3 else nn.Conv2d
        x = x if case.rank == 3 else x.transpose(1, 2).flatten(0, 1)
        with collect() as decisions:
            y = layer(x)
        assert y.shape == stock.forward.__get__(layer)(x).shape
        assert list(decisions.layers) == [case.name]
    assert layer(x).shape == y.shape  # outside a scope it reports to nobody


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('name', ['odd', 'groups', 'not normalised', '2d groups'])
def test_gradients_against_finite_differences(name, training):
    case = CASES[names.index(name)]
    layer, x = build(case), clips(case, 2)[..., :4, :4].clone().requires_grad_()
    layer.train(training)
    choices = every_modulation(layer, x)
    parameters = [layer.weight, *layer.channel_options.parameters()]
    parameters += list(layer.temporal_options.parameters())
    for modulation in (choices[0], choices[-1]):
        inputs = [x, *parameters]
        assert torch.autograd.gradcheck(
            lambda *_, m=modulation: layer.modulate(x, m)[0], inputs, fast_mode=True
        )
    # At zero an option switches off: there the function has a one-sided derivative only.
    weights = [(0.1 + 0.8 * torch.rand_like(v)).requires_grad_() for v in choices[0]]
    assert torch.autograd.gradcheck(lambda *v: layer.modulate(x, Modulation(*v))[0], weights)


def test_autocast_keeps_the_reduced_precision_of_the_stock_layer():
    layer, x = build(CASES[0], torch.float32), clips(CASES[0], 2, torch.float32)
    with torch.autocast('cpu', torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        assert layer.train()(x).dtype == torch.bfloat16


def test_reduced_precision_and_empty_batch():
    layer, x = build(CASES[0], torch.bfloat16), clips(CASES[0], 2, torch.bfloat16)
    assert layer(x).dtype == torch.bfloat16
    layer = build(CASES[0])
    assert layer(clips(CASES[0], 0)).shape[:2] == (0, 8)


def test_errors_name_layer_and_shape():
    layer = build(Case('stage.conv', {'in_channels': 2, 'out_channels': 4, 'kernel_size': 1}))
    with pytest.raises(ValueError, match=r'stage\.conv: expected clips .* got \(2, 3, 4, 4\)'):
        layer(torch.zeros(2, 3, 4, 4))
    frames = build(
        Case('stem', {'in_channels': 2, 'out_channels': 4, 'kernel_size': 1}, frames=4, rank=2)
    )
    with pytest.raises(ValueError, match=r'stem: .* num_segments is 4, got \(6, 2, 4, 4\)'):
        frames(torch.zeros(6, 2, 4, 4))
    with torch.no_grad():
        layer.gate.fc2.bias.fill_(float('nan'))
    with pytest.raises(FloatingPointError, match=r'stage\.conv'):
        layer(torch.zeros(1, 2, 4, 4, 4, dtype=torch.float64))


def test_converted_layer_shares_the_parameters_of_the_stock_one():
    conv = nn.Conv3d(4, 8, 3)
    case = CASES[0]
    made = build(case)
    layer = DynamicConv3d.convert_from(conv, made.gate, made.channel_options, made.temporal_options)
    assert layer.weight is conv.weight
    assert {k for k in layer.state_dict() if '.' not in k} == set(conv.state_dict())
    assert isinstance(layer, nn.Conv3d)
    assert layer.stride == conv.stride


@pytest.mark.parametrize('case', CASES, ids=names)
def test_what_is_overwritten_without_gradients_is_what_is_written_with_them(case):
    layer, x = build(case), clips(case, 3)
    for modulation in every_modulation(layer, x):
        expected, _ = layer.modulate(x, modulation)
        before = x.clone()
        with torch.no_grad():
            found, _ = layer.modulate(x, modulation)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(x, before)
