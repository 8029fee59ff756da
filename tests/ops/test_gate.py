# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Gate, weights of options in use, straight-through cost, and numbers of options."""

import itertools

import pytest
import torch

from vared2_mmaction.ops import Modulation, Options, SoftModulationGate, kept
from vared2_mmaction.ops.conv import forced_weights, of_options
from vared2_mmaction.ops.cost import dearest_option
from vared2_mmaction.ops.gate import INITIAL, descriptor, open_options
from vared2_mmaction.ops.mixing import shares
from vared2_mmaction.ops.options import available

pytestmark = pytest.mark.fast


def floor_of(floor, number):
    """Weights of options of which only the cheapest is on."""
    return torch.eye(number)[-1] * floor


def test_starts_with_all_options_open():
    gate = SoftModulationGate(4, 4, 4).eval()
    x = torch.randn(5, 4, 16, 6, 6)
    for v, expected in zip(gate(x, 4), INITIAL.values(), strict=True):
        torch.testing.assert_close(v, torch.tensor([expected]).expand(5, 4), atol=0.02, rtol=0)
        assert (v > 0).all()
    dear, *others = gate(x, 4).channel.T
    assert all((dear > 5 * other).all() for other in others)
    dear, following, *others = gate(x, 4).temporal.T
    assert (following > dear).all()
    assert all((dear > other).all() for other in others)


def test_starts_as_it_is_told():
    gate = SoftModulationGate(4, 2, 3, initial=(0.5, 0.4, 0.3)).eval()
    channel, temporal = gate(torch.randn(5, 4, 8, 6, 6), 3)
    torch.testing.assert_close(channel[0], torch.tensor([0.5, 0.4]), atol=0.02, rtol=0)
    torch.testing.assert_close(temporal[0], torch.tensor([0.5, 0.4, 0.3]), atol=0.02, rtol=0)
    own = {'channel': (0.9, 0.1), 'temporal': (0.3, 0.2, 0.1)}
    channel, temporal = SoftModulationGate(4, 2, 3, initial=own)(torch.randn(5, 4, 8, 6, 6), 3)
    torch.testing.assert_close(channel[0], torch.tensor([0.9, 0.1]), atol=0.02, rtol=0)
    torch.testing.assert_close(temporal[0], torch.tensor([0.3, 0.2, 0.1]), atol=0.02, rtol=0)
    own = {'channel': (0.3, 0.2)}
    channel, temporal = SoftModulationGate(4, 2, 3, initial=own)(torch.randn(5, 4, 8, 6, 6), 3)
    torch.testing.assert_close(channel[0], torch.tensor([0.3, 0.2]), atol=0.02, rtol=0)
    default = torch.tensor(INITIAL['temporal'][:3])
    torch.testing.assert_close(temporal[0], default, atol=0.02, rtol=0)


def test_frames_of_clips_that_move_less_start_cheaper():
    torch.manual_seed(0)
    gate = SoftModulationGate(4, 3, 3, initial=(0.3, 0.2, 0.1), motion_slope=0.15)
    x = torch.randn(8, 4, 6, 6, 6)
    x[:4] = x[:4, :, :1]  # do not move
    channel, temporal = gate(x, 3)
    assert (temporal > 0).all()
    for option in (0, 1):
        assert temporal[:4, option].max() < temporal[4:, option].min() - 0.1
        bias = gate.fc2.bias[3 + option]
        assert (temporal[:, option].atanh() - bias).abs().max() < 0.15 + 0.02
    plain = SoftModulationGate(4, 3, 3, initial=(0.3, 0.2, 0.1))(x, 3)
    for found, expected in ((channel, plain.channel), (temporal[:, 2], plain.temporal[:, 2])):
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize('training', [True, False])
def test_no_clip_ends_with_every_option_off(training):
    gate = SoftModulationGate(4, 3, 4).train(training)
    for _ in range(20):
        torch.nn.init.normal_(gate.fc2.weight, std=3)
        torch.nn.init.normal_(gate.fc2.bias, mean=-3, std=3)
        for v in gate(torch.randn(16, 4, 4, 3, 3), 3):
            assert ((v >= 0) & (v <= 1)).all()  # rounded to 1 where tanh saturates
            assert (v > 0).any(1).all()
    torch.nn.init.constant_(gate.fc2.bias, -50)
    channel, temporal = gate(torch.randn(2, 4, 4, 3, 3), 3)
    assert temporal[0].tolist() == pytest.approx([0, 0, gate.floor])
    assert channel[0].tolist() == pytest.approx([0, 0, gate.floor])


def test_descriptor_tells_a_still_clip_from_a_moving_one_at_any_length():
    frame = torch.randn(1, 3, 1, 5, 5)
    still, longer = frame.expand(-1, -1, 4, -1, -1), frame.expand(-1, -1, 9, -1, -1)
    moving = torch.stack([frame[:, :, 0].roll(t, -1) for t in range(4)], 2)
    torch.testing.assert_close(descriptor(still, True), descriptor(longer, True))
    torch.testing.assert_close(descriptor(still, True)[:, :3], descriptor(still, False))
    assert (descriptor(still, True)[:, 3:] == 0).all()
    assert (descriptor(moving, True)[:, 3:] > 0.1).all()
    assert (descriptor(frame, True)[:, 3:] == 0).all()


def test_shares_are_weights_over_their_sum():
    v = Modulation(torch.rand(4, 3).double(), torch.tensor([[0.2, 0, 0.1]] * 4).double())
    for share, weights in zip(shares(v), v, strict=True):
        torch.testing.assert_close(share.sum(1), torch.ones(4).double())
        torch.testing.assert_close(share * weights.sum(1, keepdim=True), weights)
    alone = Modulation(torch.rand(4, 1), torch.rand(4, 1))
    assert shares(alone) == (None, None)  # one option has all


def test_of_options_in_use_one_is_always_on():
    v = torch.tensor([[0.5, 0.2, 0, 0], [0, 0, 0.3, 0.1], [0.4, 0, 0, 0.2]], dtype=torch.float64)
    v.requires_grad_()
    assert of_options(v, (0, 1, 2, 3)) is v
    found = of_options(v, (1, 2))
    # The cheapest takes over the weight of the largest where both are off.
    assert found.tolist() == [[0.2, 0], [0, 0.3], [0, 0.4]]
    found.sum().backward()
    assert v.grad.tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 0]]
    for _ in range(20):
        given = (torch.randn(30, 4).tanh() - 0.5).relu()
        v = open_options(given, floor_of(0.05, 4)).double()
        for which in itertools.chain(*(itertools.combinations(range(4), n) for n in range(1, 5))):
            chosen = of_options(v, which)
            assert (chosen > 0).any(1).all()
            on = (v[:, which] > 0).any(1)
            assert torch.equal(chosen[on], v[on][:, which])


def test_forced_options_have_all_the_weight():
    forced = torch.tensor([[0, 1], [3, 2], [2, 9]])
    channel, temporal = forced_weights(forced, 3, Options((0, 2), (1, 2)), torch.float32)
    assert channel.tolist() == [[1, 0], [0, 1], [0, 1]]
    assert temporal.tolist() == [[1, 0], [0, 1], [0, 1]]
    same = forced_weights(forced[:1], 5, Options((0, 2), (1, 2)), torch.float32)
    assert same.channel.tolist() == [[1, 0]] * 5
    with pytest.raises(ValueError, match='expected a batch of 3 clips, got 2'):
        forced_weights(forced, 2, Options((0,), (0,)), torch.float32)


def test_a_short_clip_has_the_cheapest_option_that_there_is():
    assert available((0, 2), 3) == (0, 2)
    assert available((0, 2), 2) == (0,)
    assert available((1, 2), 2) == (1,)
    assert available((2,), 2) == (1,)
    assert available((1, 2), 1) == (0,)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('numbers', [(3, 3), (2, 3), (1, 3), (3, 1)], ids=str)
def test_every_parameter_of_a_called_gate_has_a_gradient(numbers, training):
    gate = SoftModulationGate(5, *numbers).double().train(training)
    x = torch.randn(7, 5, 6, 9, 9).double()
    for clips, options in ((7, 3), (1, 2)):
        gate.zero_grad()
        v = gate(x[:clips], min(options, numbers[1]))
        (v.channel.square().sum() + v.temporal.square().sum()).backward()
        assert [key for key, p in gate.named_parameters() if p.grad is None] == []


def test_gradients_of_a_gate_against_finite_differences():
    gate = SoftModulationGate(3, 3, 2, hidden_channels=2).double()
    torch.nn.init.normal_(gate.fc2.weight, std=0.2)
    x, names = torch.randn(4, 3, 4, 5, 5).double(), [n for n, _ in gate.named_parameters()]

    def weigh(*parameters):
        given = dict(zip(names, parameters, strict=True))
        return torch.cat(torch.func.functional_call(gate, given, (x, 2)), 1)

    assert torch.autograd.gradcheck(weigh, tuple(gate.parameters()))


def test_gates_are_evaluated_in_full_precision_in_both_directions():
    gate, x, gradients = SoftModulationGate(5, 3, 3).eval(), torch.randn(7, 5, 6, 9, 9), []
    for cast in (False, True):
        gate.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=cast):
            v = gate(x, 3)
        (v.channel.square().sum() + v.temporal.square().sum()).backward()
        gradients.append([p.grad for p in gate.parameters()])
    for exact, found in zip(*gradients, strict=True):
        assert torch.equal(exact, found)


def test_where_all_options_would_be_off_the_cheapest_has_the_floor():
    for number, floor in ((3, 0.05), (2, 0.1), (4, 0.3)):
        given = (torch.randn(50, number).tanh() - 0.4).relu()
        weights = open_options(given, floor_of(floor, 4))  # more than there are
        closed = (given == 0).all(1)
        assert closed.any()
        cheapest = torch.eye(number)[-1] * floor
        assert torch.equal(weights[closed], cheapest.expand(int(closed.sum()), number))
        assert torch.equal(weights[~closed], given[~closed])
    assert (open_options(torch.rand(5, 1), floor_of(0.1, 1)) == 1).all()
    assert open_options(torch.tensor([[torch.nan, 0]]), floor_of(0.1, 2)).isnan().any()


def test_both_dimensions_at_once_weigh_as_each_alone():
    gate = SoftModulationGate(4, 3, 3).eval()
    torch.nn.init.normal_(gate.fc2.weight, std=3)
    torch.nn.init.normal_(gate.fc2.bias, mean=-1)
    x = torch.randn(40, 4, 6, 5, 5)
    both, channel_alone = gate(x, 3), gate(x, 2).channel
    assert (both.channel == 0).any()
    assert torch.equal(both.channel, channel_alone)
    own = gate.weigh(descriptor(x, motion=True)).relu()[:, 3:]
    assert torch.equal(both.temporal, open_options(own, gate.cheapest))
    apart = [v / v.sum(1, keepdim=True) for v in both]
    for share, expected in zip(shares(both), apart, strict=True):
        assert torch.equal(share, expected)


def test_one_clip_trains_as_it_is_evaluated():
    gate = SoftModulationGate(4, 3, 3)
    x = torch.randn(1, 4, 4, 3, 3)
    for trained, evaluated in zip(gate.train()(x, 3), gate.eval()(x, 3), strict=True):
        torch.testing.assert_close(trained, evaluated)
    assert gate.train()(torch.randn(2, 4, 4, 3, 3), 3).channel.shape == (2, 3)
    assert gate.bn.num_batches_tracked == 1


def test_straight_through_is_exact_and_pushes_at_the_dearest_open_option():
    sizes = (12_345_678_901, 7_654_321_001, 3_000_000_007)
    v = torch.tensor([[0.3, 0.2, 0.1], [0, 0.7, 0.1], [0, 0, 0.2], [0.1, 0, 0]], requires_grad=True)
    cost = (dearest_option(v.double()) * torch.tensor(sizes, dtype=torch.float64)).sum(1)
    assert cost.tolist() == [sizes[0], sizes[1], sizes[2], sizes[0]]
    cost.sum().backward()
    # Closing the dearest open option saves what the next open one does not cost.
    assert v.grad[0].tolist() == pytest.approx([sizes[0] - sizes[1], 0, 0])
    assert v.grad[1, 1:].tolist() == pytest.approx([sizes[1] - sizes[2], 0])
    assert (v.grad[torch.arange(4), [0, 1, 2, 0]] > 0).all()


def test_the_gradient_of_the_cost_reaches_the_gate():
    gate = SoftModulationGate(4, 3, 3)
    for v in gate(torch.randn(6, 4, 4, 3, 3), 3):
        gate.zero_grad()
        sizes = torch.tensor([[4.0, 2, 1]])
        (dearest_option(v.double()) * sizes).sum().backward(retain_graph=True)
        assert gate.fc2.weight.grad.abs().sum() > 0
        assert gate.fc1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ('length', 'options', 'expected'),
    [
        (8, 3, (8, 4, 2)),
        (7, 3, (7, 4, 2)),
        (3, 4, (3, 2)),
        (2, 3, (2, 1)),
        (1, 3, (1,)),
        (16, 1, (16,)),
    ],
)
def test_options_of_a_dimension(length, options, expected):
    assert kept(length, options) == expected


@pytest.mark.parametrize('multiple', [1, 4, 16])
def test_numbers_of_channels_that_fill_vectors(multiple):
    assert kept(144, 4, 16) == (144, 64, 32, 18)
    for length in range(1, 300):
        exact, rounded = kept(length, 4), kept(length, 4, multiple)
        assert rounded[0] == length
        assert all(a > b for a, b in itertools.pairwise(rounded))
        for n, m in zip(exact[1:], rounded[1:], strict=True):
            assert m == (n if n < 2 * multiple else n - n % multiple)


@pytest.mark.parametrize(
    'wrong',
    [
        {'initial': (0.5, 1.0, 0.1)},
        {'initial': (0.5, 0.1)},
        {'initial': {'channels': (0.5, 0.4, 0.3)}},
        {'initial': {'channel': (0.5, 0.4, 0.3), 'temporal': (0.5, 0.4)}},
        {'floor': 0},
        {'motion_slope': -0.1},
        {'motion_slope': 0.1, 'motion': False},
        {'motion_slope': 0.21},  # more than the weight that the dearest option starts with
        {'hidden_channels': 0},
    ],
    ids=lambda w: next(iter(w)),
)
def test_wrong_gate_options_are_named(wrong):
    with pytest.raises(ValueError, match=f'gate.{next(iter(wrong))}'):
        SoftModulationGate(4, 3, 3, **wrong)
