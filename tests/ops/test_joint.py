# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Gates that decide together answer as each would alone."""

import math

import pytest
import torch
from torch import nn

from vared2_mmaction.ops import SoftModulationGate
from vared2_mmaction.ops.answer import Answer, fetch
from vared2_mmaction.ops.gate import open_on_host, open_options
from vared2_mmaction.ops.joint import Joint, deciding, joint_answer
from vared2_mmaction.ops.stack import GateStack

OPTIONS = [(3, 3), (1, 3), (2, 3), (3, 3)]
"""Channel and temporal options of each layer of a block."""


def layers(numbers=OPTIONS, closing=0.0):
    made = []
    for channel, temporal in numbers:
        gate = SoftModulationGate(5, channel, temporal, hidden_channels=6, floor=0.07)
        nn.init.normal_(gate.fc2.weight, std=2)
        nn.init.normal_(gate.fc2.bias, mean=closing)
        nn.init.uniform_(gate.bn.running_mean, -1, 1)
        nn.init.uniform_(gate.bn.weight, 0.5, 2)
        layer = nn.Identity()
        layer.gate = gate
        made.append(layer)
    return made


@pytest.mark.parametrize('closing', [0.0, -2.0])
@pytest.mark.parametrize('options', [3, 2, 1])
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('numbers', [OPTIONS, [(3, 1), (2, 1)], [(4, 2)]], ids=str)
def test_every_gate_answers_as_it_does_alone(numbers, training, options, closing):
    block, x = layers(numbers, closing), torch.randn(7, 5, 6, 9, 9)
    options = min(options, numbers[0][1])
    for layer in block:
        layer.train(training)
    joint = Joint(block, x)
    for layer in block:
        expected = layer.gate(x, options)
        answer = joint.answer(layer, options)
        for found, alone in zip(answer.modulation, expected, strict=True):
            torch.testing.assert_close(found, alone)
        again = fetch(answer.modulation).weights
        for pair, other in zip(answer.weights, again, strict=True):
            for weights, fetched in zip(pair, other, strict=True):
                assert weights == pytest.approx(fetched, abs=1e-7)
                assert [w > 0 for w in weights] == [w > 0 for w in fetched]


def test_the_stack_answers_as_the_gates():
    block, x = layers(), torch.randn(7, 5, 6, 9, 9)
    gates = [layer.eval().gate for layer in block]
    with torch.no_grad():
        expected = Joint(block, x)
        for gate in gates:
            gate.fold_norm()
        found = Joint(block, x, GateStack(gates))
        for layer in block:
            for a, b in zip(
                found.answer(layer, 3).modulation, expected.answer(layer, 3).modulation, strict=True
            ):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_the_stack_is_evaluated_in_full_precision():
    gates = [layer.eval().gate for layer in layers()]
    for gate in gates:
        gate.fold_norm()
    stack, x = GateStack(gates), torch.randn(7, 5, 6, 9, 9)
    with torch.no_grad():
        expected = stack(x)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert torch.equal(stack(x), expected)


@pytest.mark.parametrize('saturation', [None, math.inf, 0.5])
@pytest.mark.parametrize('options', [3, 2, 1])
def test_shares_of_all_layers_are_those_of_each(options, saturation):
    block, x = layers(), torch.randn(7, 5, 6, 9, 9)
    joint, found, expected = Joint(block, x), [], []
    for layer in block:
        answer = joint.answer(layer, options)
        alone = Answer(answer.weights, lambda answer=answer: answer.modulation)
        for part, single in zip(answer.shares(saturation), alone.shares(saturation), strict=True):
            assert part.is_contiguous()  # as kernels read them
            torch.testing.assert_close(part[:, : single.shape[1]], single)
            assert not part[:, single.shape[1] :].any()
            found.append(part[:, : single.shape[1]])
            expected.append(single)
    gradients = []
    parameters = [p for layer in block for p in layer.parameters()]
    for parts in (found, expected):
        loss = sum((part * part.cumsum(1)).sum() for part in parts)
        gradients.append(torch.autograd.grad(loss, parameters, retain_graph=True))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_gate():
    block, x = layers([(3, 3), (3, 3)], closing=0.5), torch.randn(4, 5, 6, 9, 9)
    joint = Joint(block, x)
    for layer in block:
        v = joint.answer(layer, 2).modulation
        (v.channel.sum() + v.temporal.sum()).backward(retain_graph=True)
        assert layer.gate.fc1.weight.grad.abs().sum() > 0
    assert block[0].gate.fc1.weight.grad is not block[1].gate.fc1.weight.grad


def test_answers_are_those_of_the_open_block():
    (one, two), x = layers([(2, 2), (2, 2)]), torch.randn(2, 5, 6, 9, 9)
    assert joint_answer(one, 2) is None
    with deciding(Joint([one], x)):
        assert joint_answer(one, 2) is not None
        assert joint_answer(two, 2) is None
        with deciding(Joint([two], x)):
            assert joint_answer(one, 2) is None
        assert joint_answer(one, 2) is not None
    assert joint_answer(one, 2) is None


def test_options_open_on_the_host_as_on_the_device():
    numbers = ((3, 2, 0.05), (1, 3, 0.2), (2, 1, 0.1))
    v = torch.randn(50, 3, 2, 3, dtype=torch.float64).tanh() - 0.4
    opened = open_options(v, numbers)
    for row, (*of_layer, floor) in enumerate(numbers):
        for dimension, number in enumerate(of_layer):
            on_device = opened[:, row, dimension]
            assert (on_device[:, number:] == 0).all()
            on_host = [open_on_host(w, number, floor) for w in v[:, row, dimension].tolist()]
            assert on_host == on_device[:, :number].tolist()
    assert (opened.amax(-1) > 0).all()
    assert (opened == 0.1).any()


def test_tables_made_in_inference_mode_serve_training():
    v, numbers = torch.randn(2, 1, 2, 3), ((3, 1, 0.123),)
    with torch.inference_mode():
        open_options(v, numbers)
    v.requires_grad_()
    open_options(v, numbers).sum().backward()
    assert v.grad.abs().sum() > 0
