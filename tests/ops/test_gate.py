# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Gate, straight-through cost and options."""

import itertools
import math

import pytest
import torch

from vared2_mmaction.ops import SoftModulationGate, kept
from vared2_mmaction.ops.blend import shares, sharing
from vared2_mmaction.ops.decision import straight_through
from vared2_mmaction.ops.gate import INITIAL, descriptor
from vared2_mmaction.ops.options import check_num_options


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
    for v in SoftModulationGate(4, 3, 3, initial=(0.9, 0.067, 0.033))(
        torch.randn(5, 4, 8, 6, 6), 3
    ):
        assert torch.equal(shares(v, 0.5), torch.tensor([[1.0, 0, 0]]).expand(5, 3))
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


def test_shares_break_a_stick():
    v = torch.tensor(
        [[0.9, 0.9, 0.9], [0.25, 0.9, 0.9], [0, 0.25, 0.9], [0, 0, 0.1], [0.25, 0.25, 0]]
    )
    expected = [[1, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1], [2 / 3, 1 / 3, 0]]
    torch.testing.assert_close(shares(v, 0.5), torch.tensor(expected))
    for row, share in zip(v.tolist(), expected, strict=True):
        assert sharing(row, 0.5) == [i for i, s in enumerate(share) if s > 0]
    torch.testing.assert_close(shares(v, math.inf), v / v.sum(1, keepdim=True))
    torch.testing.assert_close(shares(v, 1e4), shares(v, math.inf), atol=1e-4, rtol=0)
    assert sharing([0.9, 0.0, 0.1], math.inf) == [0, 2]
    assert sharing([0.9, 0.0, 0.1], None) == [0, 2]
    inputs = (0.05 + 0.4 * torch.rand(4, 3, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: shares(v, 0.5), [inputs])


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
    cost = straight_through(v[:, None], torch.tensor([sizes], dtype=torch.float64))
    assert cost[:, 0].tolist() == [sizes[0], sizes[1], sizes[2], sizes[0]]
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
        straight_through(v[:, None], sizes).sum().backward(retain_graph=True)
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


@pytest.mark.parametrize('wrong', [0, 5, 2.0, '3', None, True])
def test_wrong_numbers_of_options(wrong):
    with pytest.raises(ValueError, match=r'dynamic\.channel=.*from 1 .* to 4'):
        check_num_options(wrong, 'dynamic.channel')


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
