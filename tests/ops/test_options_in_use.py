# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Options out of use: what is computed, charged and kept in checkpoints."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vared2_mmaction.ops import charge
from vared2_mmaction.ops.conv import of_options

from .layers import as_input, build, case_of, clips

pytestmark = pytest.mark.fast
SUBSETS = [((0,), (0, 1, 2)), ((1, 2), (0, 2)), ((0, 2), (1,)), ((2,), (1, 2)), ((1,), (2,))]
PARTS = ('channel_options', 'temporal_options')
KINDS = ['plain', 'groups', '2d']


def closed_but(layer, subset, option_of=lambda which: which[0]):
    """The layer with all options but some closed by its gate, of which one is always on."""
    layer = copy.deepcopy(layer)
    bias, first = layer.gate.fc2.bias.data, 0
    for which, number in zip(subset, layer.num_options, strict=True):
        for option in range(number):
            if option not in which:
                bias[first + option] = -50
        bias[first + option_of(which)] = 0.7
        first += number
    return layer


def pruned(layer, subset):
    layer = copy.deepcopy(layer)
    for part, which in zip(PARTS, subset, strict=True):
        getattr(layer, part).use(which)
    return layer


def run(layer, x):
    """Output, and what each clip is charged."""
    layer.decisions = ()
    y = layer(x)
    (decision,) = layer.decisions
    layer.decisions = None
    return y, charge([decision])[:, 0]


@pytest.mark.parametrize('subset', SUBSETS, ids=str)
@pytest.mark.parametrize('kind', KINDS)
def test_the_same_is_computed_as_with_these_options_closed(kind, subset):
    case = case_of(kind)
    layer, x = build(case), as_input(case, clips(case, 5))
    torch.nn.init.normal_(layer.gate.fc2.weight, std=0.2)
    closed = closed_but(layer, subset)
    open_only = pruned(closed, subset)
    expected, charges = run(closed, x)
    found, own = run(open_only, x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    single = all(len(which) == 1 for which in subset)
    charges[:, 2] -= layer.gate.macs() if single else 0  # the gate is not asked then
    assert torch.equal(own, charges)
    policies = {tuple(row) for row in own[:, 3:].long().tolist()}
    assert all(c in subset[0] and t in subset[1] for c, t in policies)


@pytest.mark.parametrize('subset', SUBSETS, ids=str)
def test_the_convolution_is_that_of_the_dearest_in_use(subset):
    case = case_of('plain')
    layer, x = build(case, torch.float32), clips(case, 1, torch.float32)
    layer = pruned(closed_but(layer, subset), subset)
    with FlopCounterMode(display=False) as counter:
        _, charges = run(layer, x)
    single = all(len(which) == 1 for which in subset)
    gate = 0 if single else layer.gate.macs()  # which decides nothing
    assert counter.get_total_flops() // 2 - gate == charges[0, 0]
    shares = 2.0 ** -(subset[0][0] + subset[1][0])
    assert charges[0, 0] == shares * charges[0, 1]


def test_what_is_in_use_is_kept_in_checkpoints():
    layer = pruned(build(case_of('plain')), ((0, 2), (1,)))
    state = layer.state_dict()
    assert state['channel_options.used'].tolist() == [True, False, True]
    assert state['temporal_options.used'].tolist() == [False, True, False]
    other = build(case_of('plain'))
    other.load_state_dict(state)
    assert other.in_use == ((0, 2), (1,))
    x = clips(case_of('plain'), 3)
    assert torch.equal(other(x), layer(x))
    copied = copy.deepcopy(layer)
    copied.channel_options.use((1,))
    assert layer.in_use == ((0, 2), (1,))


def test_older_checkpoints_have_all_options_in_use():
    layer = build(case_of('plain'))
    state = {k: v for k, v in layer.state_dict().items() if not k.endswith('.used')}
    other = pruned(build(case_of('plain')), ((1,), (1, 2)))
    other.load_state_dict(state, strict=True)
    assert other.in_use == ((0, 1, 2), (0, 1, 2))
    assert not any(key.endswith('.used') for key in state)  # the file's content stays as it is


def test_an_option_is_left_in_use():
    options = build(case_of('plain')).channel_options
    for none in ((), (3,), (-1, 7)):
        with pytest.raises(ValueError, match='an option of 0 to 2 to be left in use'):
            options.use(none)
    assert options.in_use == (0, 1, 2)
    options.use((2, 0, 2))
    assert options.in_use == (0, 2)


def test_a_clip_shorter_than_all_options_in_use_takes_the_cheapest_there_is():
    case = case_of('one frame')
    layer = pruned(build(case), ((0, 1), (2,)))
    assert layer.options_of(1)[0] == ((0, 1), (0,))
    assert layer.options_of(2)[0] == ((0, 1), (1,))
    assert layer.options_of(4)[0] == ((0, 1), (2,))


def test_the_cheapest_in_use_takes_over_where_the_gate_opens_none_in_use():
    v = torch.tensor([[0.7, 0.0, 0.0], [0.3, 0.9, 0.0], [0.2, 0.0, 0.4], [0.0, 0.5, 0.6]])
    expected = torch.tensor([[0.0, 0.7], [0.9, 0.0], [0.0, 0.4], [0.5, 0.6]])
    assert torch.equal(of_options(v, (1, 2)), expected)
    assert torch.equal(of_options(v, (2,)), torch.tensor([[0.7], [0.9], [0.4], [0.6]]))
    assert of_options(v, (0, 1, 2)) is v
