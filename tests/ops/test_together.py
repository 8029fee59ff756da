# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Gates evaluated together do what each does on its own."""

import copy

import pytest
import torch
from torch import nn

from vared2_mmaction.ops import SoftModulationGate
from vared2_mmaction.ops.joint import Joint
from vared2_mmaction.ops.together import weigh

NUMBERS = {
    'alike': [(3, 3), (3, 3), (3, 3)],
    'alone': [(3, 3)],
    'wider in time': [(2, 3), (2, 3)],
    'without channel options': [(1, 3), (1, 3)],
}


def gates(numbers, dtype=torch.float64, hidden=6):
    made = [SoftModulationGate(5, *pair, hidden) for pair in numbers]
    for gate in made:
        for parameter in gate.parameters():
            nn.init.normal_(parameter, std=0.5)
        nn.init.uniform_(gate.bn.running_mean, -1, 1)
        nn.init.uniform_(gate.bn.running_var, 0.5, 2)
        gate.to(dtype)
    return made


def each(gates, described):
    width = max(gate.width for gate in gates)
    return torch.stack([gate.weigh(described, width) for gate in gates], 1)


def run(function, gates, described, steps=2):
    """Weights, gradients and statistics after some steps."""
    gates, found = copy.deepcopy(gates), []
    for step in range(steps):
        v = function(gates, described + step)
        if v.requires_grad:
            weights = torch.linspace(-1, 2, v.numel(), dtype=v.dtype).view_as(v)
            (weights * v * (v != 0)).sum().backward()
        found.append(v.detach())
    for gate in gates:
        found += [p.grad for p in gate.parameters()]
        found += gate.buffers()
    return found


def check(gates, described, together_at_all=True):
    found, expected = run(weigh, gates, described), run(each, gates, described)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b)
    v = weigh(gates, described)
    assert (v.grad_fn is not None and 'Weigh' in v.grad_fn.name()) == together_at_all


@pytest.mark.parametrize('clips', [7, 2, 1, 0])
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('numbers', NUMBERS)
def test_weights_gradients_and_statistics(numbers, training, clips):
    of = [gate.train(training) for gate in gates(NUMBERS[numbers])]
    check(of, torch.randn(clips, 10, dtype=torch.float64), together_at_all=clips > 0)


def test_single_precision():
    of, described = gates(NUMBERS['wider in time'], torch.float32), torch.randn(7, 10)
    for a, b in zip(run(weigh, of, described), run(each, of, described), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('numbers', NUMBERS)
def test_gradients_against_finite_differences(numbers):
    of = gates(NUMBERS[numbers], hidden=2)
    described = torch.randn(4, 10, dtype=torch.float64)
    names = [[key for key, _ in gate.named_parameters()] for gate in of]

    def function(*parameters):
        left, changed = iter(parameters), copy.deepcopy(of)
        for gate, keys in zip(changed, names, strict=True):
            for key in keys:
                owner, name = gate.get_submodule(key.split('.')[0]), key.split('.')[1]
                del owner._parameters[name]
                setattr(owner, name, next(left))
        return weigh(changed, described)

    assert torch.autograd.gradcheck(function, [p for gate in of for p in gate.parameters()])


@pytest.mark.parametrize('frozen', ['fc1', 'bn', 'fc2'])
def test_what_is_frozen_gets_no_gradient(frozen):
    of = gates(NUMBERS['alike'])
    of[1].get_submodule(frozen).requires_grad_(False)
    check(of, torch.randn(7, 10, dtype=torch.float64))


def unlike():
    """What is not evaluated together, each a change of some gates."""

    def change(*path, **values):
        def apply(of):
            part = of[0].get_submodule('.'.join(path)) if path else of[0]
            for key, value in values.items():
                setattr(part, key, value)

        return apply

    def subclass(of):
        class Other(SoftModulationGate):
            def weigh(self, described, width):
                return 2 * super().weigh(described, width)

        of[0].__class__ = Other

    def normalise_otherwise(norm):
        return lambda of: setattr(of[0], 'bn', norm.double())

    return {
        'a subclass': subclass,
        'cumulative averages': lambda of: [setattr(g.bn, 'momentum', None) for g in of],
        'another momentum': change('bn', momentum=0.3),
        'another epsilon': change('bn', eps=0.1),
        'one evaluated': lambda of: of[0].eval(),
        'no statistics': normalise_otherwise(nn.BatchNorm1d(6, track_running_stats=False)),
        'nothing to train': normalise_otherwise(nn.BatchNorm1d(6, affine=False)),
        'no bias': lambda of: setattr(of[0], 'fc1', nn.Linear(10, 6, bias=False).double()),
        'no norm': normalise_otherwise(nn.Identity()),
        'another norm': normalise_otherwise(nn.LayerNorm(6)),
        'other options': lambda of: of.__setitem__(0, gates([(1, 2)])[0]),
        'another hidden width': lambda of: of.__setitem__(0, gates([(3, 3)], hidden=4)[0]),
        'a parametrization': lambda of: nn.utils.parametrizations.weight_norm(of[0].fc2),
        'a hook': lambda of: of[0].fc1.register_forward_hook(double),
        'a hook before': lambda of: of[0].bn.register_forward_pre_hook(double_input),
    }


def double(module, args, output):
    return 2 * output


def double_input(module, args):
    return (2 * args[0],)


@pytest.mark.parametrize('name', unlike())
def test_what_differs_is_evaluated_on_its_own(name):
    of = gates(NUMBERS['alike'])
    unlike()[name](of)
    check(of, torch.randn(7, 10, dtype=torch.float64), together_at_all=False)


def test_one_kind_that_differs_from_the_usual_is_evaluated_together():
    of = gates(NUMBERS['alike'])
    for gate in of:
        gate.bn.momentum, gate.bn.eps = 0.4, 0.02
    check(of, torch.randn(7, 10, dtype=torch.float64))


def test_full_precision_in_both_directions():
    class Layer(nn.Module):
        def __init__(self, gate):
            super().__init__()
            self.gate = gate

    x, gradients = torch.randn(7, 5, 6, 9, 9), []
    of = [Layer(gate) for gate in gates(NUMBERS['alike'], torch.float32)]
    for cast in (False, True):
        block = copy.deepcopy(of)
        with torch.autocast('cpu', torch.bfloat16, enabled=cast):
            Joint(block, x).weights.square().sum().backward()
        gradients.append([p.grad for layer in block for p in layer.parameters()])
    for exact, found in zip(*gradients, strict=True):
        assert torch.equal(exact, found)


def test_without_gradients():
    of = gates(NUMBERS['wider in time'])
    with torch.inference_mode():
        v = weigh(copy.deepcopy(of), torch.ones(3, 10, dtype=torch.float64))
        torch.testing.assert_close(v, each(of, torch.ones(3, 10, dtype=torch.float64)))
