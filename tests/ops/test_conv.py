# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Dynamic convolutions: shapes, costs, gradients and errors. What they compute is compared with the
reference in tests/equality."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vared2_mmaction.layout import layout
from vared2_mmaction.ops import Decision, DynamicConv3d, Modulation, charge
from vared2_mmaction.ops.cost import LayerCost

from .layers import (
    CASES,
    NAMES,
    Case,
    as_input,
    as_output,
    build,
    case_of,
    clips,
    every_modulation,
)

pytestmark = pytest.mark.fast
each_case = pytest.mark.parametrize('case', CASES, ids=NAMES)


def stock_output(case, layer, x):
    """What the stock convolution makes of clips, (N, C, T, H, W)."""
    stock = nn.Conv3d if case.rank == 3 else nn.Conv2d
    return as_output(case, stock.forward.__get__(layer)(as_input(case, x)))


def charged(layer, x, weights):
    """What the layer charges each clip for weights, (N, 5)."""
    options, frames = layer.options_of(x.shape[2])
    area = layer.convolve(x[:1])[0, 0, 0].numel()
    return charge([Decision(weights, LayerCost(layer.constants, options, frames, area))])[:, 0]


def counted(function):
    """Multiply-adds that PyTorch's counter sees."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() // 2


@each_case
def test_a_pair_of_options_computes_a_part_of_the_stock_convolution(case):
    layer, x = build(case), clips(case, 2)
    whole = stock_output(case, layer, x)
    for i, j in itertools.product(range(len(layer.channel_options.kept)), range(3)):
        part = layer.convolve(x, i, j)
        expected = whole[:, : layer.channel_options.kept[i], :: 2**j]
        torch.testing.assert_close(part, expected, rtol=1e-9, atol=1e-9)


@each_case
def test_executed_is_the_convolution_of_the_dearest_options_in_use(case):
    layer, x = build(case, torch.float32), clips(case, 1, torch.float32)
    options = layer.options_of(x.shape[2])[0]
    dearest, *others = every_modulation(layer, x)
    convolution = counted(lambda: layer.convolve(x, options.channel[0], options.temporal[0]))
    assert charged(layer, x, dearest)[0, 0] == convolution
    for weights in (dearest, *others):
        assert charged(layer, x, weights)[0, 0] <= convolution
        # Cheap operations the counter does not see.
        assert counted(lambda v=weights: layer.modulate(x, v, options)) == convolution


@each_case
def test_charges_are_those_of_what_was_decided(case):
    """Counted where the decided options are the only ones."""
    layer, x = build(case, torch.float32), clips(case, 1, torch.float32)
    in_use = layer.options_of(x.shape[2])[0]
    stock = counted(lambda: stock_output(case, layer, x))
    for channel, temporal in itertools.product(*in_use):
        weights = Modulation(
            *(
                F.one_hot(torch.tensor([which.index(option)]), len(which)).float()
                for which, option in zip(in_use, (channel, temporal), strict=True)
            )
        )
        z, y = layer.convolve(x, channel, temporal), layer.convolve(x)
        convolution = counted(lambda: layer.convolve(x, channel, temporal))  # noqa: B023
        executed, static, overhead, *policy = charged(layer, x, weights)[0].tolist()
        assert policy == [channel, temporal]
        assert (executed, static) == (convolution, stock)
        gate = layer.gate.macs() if max(map(len, in_use)) > 1 else 0  # there is nothing to choose
        assert overhead - gate == y.numel() - z.numel()  # one for each rebuilt element


@each_case
def test_forward_keeps_stock_shapes_and_notes_what_was_decided(case):
    layer, x = build(case), clips(case, 2)
    expected = stock_output(case, layer, x)
    y = layer(as_input(case, x))
    assert as_output(case, y).shape == expected.shape
    assert layer.decisions is None  # nobody collects
    layer.decisions = ()
    layer(as_input(case, x))
    layer(as_input(case, x))
    first, second = layer.decisions
    assert torch.equal(charge([first]), charge([second]))
    options = layer.options_of(case.frames)[0]
    assert [v.shape[1] for v in first.weights] == [len(which) for which in options]


@each_case
@pytest.mark.parametrize('lies', ['contiguous', 'channels last', 'frames'])
def test_maps_keep_their_layout(case, lies):
    """Or layers behind take slower kernels, and copy."""
    layer, x = build(case), clips(case, 2)
    if lies == 'channels last':
        x = x.to(memory_format=torch.channels_last_3d)
    elif lies == 'frames':
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    z = layer.convolve(x)
    y = layer.modulate(x, every_modulation(layer, x)[0], layer.options_of(case.frames)[0])
    if min(y.shape[1:3]) > 1 and layer.channel_options.kept[-1] > 1:  # which have a layout
        assert layout(y) == layout(z)


@pytest.mark.parametrize(
    'name', ['odd', 'groups', 'in use: outer ones', 'in use: one channel option']
)
def test_gradients_against_finite_differences(name):
    case = case_of(name)
    layer, x = build(case), clips(case, 2)[..., :4, :4].clone().requires_grad_()
    layer.train()
    options, choices = layer.options_of(case.frames)[0], every_modulation(layer, x)
    parameters = [layer.weight, *layer.channel_options.parameters()]
    parameters += list(layer.temporal_options.parameters())
    for weights in (choices[0], choices[-1]):
        assert torch.autograd.gradcheck(
            lambda *_, v=weights: layer.modulate(x, v, options), [x, *parameters], fast_mode=True
        )
    # At zero an option switches off: there the function has a one-sided derivative only.
    given = [(0.1 + 0.8 * torch.rand_like(v)).requires_grad_() for v in choices[0]]
    assert torch.autograd.gradcheck(
        lambda *v: layer.modulate(x, Modulation(*v), options), given, fast_mode=True
    )


def test_autocast_and_reduced_precision():
    case = case_of('plain')
    layer, x = build(case, torch.float32), clips(case, 2, torch.float32)
    with torch.autocast('cpu', torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        assert layer.train()(x).dtype == torch.bfloat16
    layer = build(case, torch.bfloat16)
    assert layer(clips(case, 2, torch.bfloat16)).dtype == torch.bfloat16
    assert build(case)(clips(case, 0)).shape[:2] == (0, 8)


def test_errors_name_layer_and_shape():
    conv = {'in_channels': 2, 'out_channels': 4, 'kernel_size': 1}
    layer = build(Case('stage.conv', conv))
    with pytest.raises(ValueError, match=r'stage\.conv: expected clips .* got \(2, 3, 4, 4\)'):
        layer(torch.zeros(2, 3, 4, 4))
    frames = build(Case('stem', conv, frames=4, rank=2))
    with pytest.raises(ValueError, match=r'stem: .* num_segments is 4, got \(6, 2, 4, 4\)'):
        frames(torch.zeros(6, 2, 4, 4))


def test_converted_layer_shares_the_parameters_of_the_stock_one():
    conv = nn.Conv3d(4, 8, 3)
    made = build(case_of('plain'))
    layer = DynamicConv3d.convert_from(conv, made.gate, made.channel_options, made.temporal_options)
    assert layer.weight is conv.weight
    assert {k for k in layer.state_dict() if '.' not in k} == set(conv.state_dict())
    assert isinstance(layer, nn.Conv3d)
    assert layer.stride == conv.stride
