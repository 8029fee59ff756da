# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Convolutions of residual blocks are executed by one call of compiled code."""

import math

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from vared2_mmaction.models import accelerate, dynamic_layers, force_policies, fuse
from vared2_mmaction.models.epilogues import FusedResidual
from vared2_mmaction.ops import chain, compiled, packed

from ..compiling import needs_compiler
from .backbones import STOCK, dynamic, stock

NETWORKS = ('ResNet', 'ResNet3d', 'ResNet2Plus1d', 'ResNetTSM')

pytestmark = needs_compiler


def clips(name):
    return torch.randn(STOCK[name][1])


def network(name, **options):
    """A dynamic network by compiled code, whose gates answer differently for each clip."""
    net = dynamic(name, options)
    for layer in dynamic_layers(net).values():
        torch.nn.init.normal_(layer.gate.fc2.weight, std=2)
    return fuse(net, compiled=True)


def stages_of(net):
    return [list(m.stages) for m in net.modules() if isinstance(m, FusedResidual)]


@pytest.fixture
def calls(monkeypatch):
    """How many layers each call of compiled code was told, and how many it executed."""
    seen = []

    def execute(layers, x, residual):
        found = compiled.execute(layers, x, residual)
        seen.append((len(layers), found.layers))
        return found

    monkeypatch.setattr(chain, 'execute', execute)
    return seen


def one_by_one(net, x, monkeypatch):
    """What a network makes of clips where every layer is called."""
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(chain, '_is_compiled', lambda stage: False)
        return net(x)


@pytest.mark.parametrize('gate_input', ['layer', 'block'])
@pytest.mark.parametrize('name', NETWORKS)
def test_blocks_of_dynamic_networks(name, gate_input, calls, monkeypatch):
    net, x = network(name, gate_input=gate_input), clips(name)
    with torch.no_grad():
        net(x)  # what oneDNN convolves is planned
        calls.clear()
        features, decisions = net(x)
    if name == 'ResNetTSM':  # the first of two convolutions is behind a shift
        assert calls == [(1, 1)] * len(stages_of(net))
    else:
        assert calls == [(len(stages), len(stages)) for stages in stages_of(net)]
    expected = one_by_one(net, x, monkeypatch)
    assert torch.equal(features, expected.features)
    assert torch.equal(decisions, expected.decisions)
    policy = torch.randint(0, 3, (2, len(dynamic_layers(net)), 2))
    with torch.no_grad(), force_policies(net, policy):
        features, decisions = net(x)
        expected = one_by_one(net, x, monkeypatch)
    assert torch.equal(features, expected.features)
    assert torch.equal(decisions, expected.decisions)


@pytest.mark.parametrize('name', NETWORKS)
def test_blocks_of_stock_networks(name, calls, monkeypatch):
    net, x = fuse(accelerate(stock(name)), compiled=True), clips(name)
    with torch.no_grad():
        net(x)
        calls.clear()
        y = net(x)
    assert all(told == executed for told, executed in calls)
    assert len(calls) == len(stages_of(net))
    assert torch.equal(y, one_by_one(net, x, monkeypatch))


def test_layers_without_compiled_code_are_called(calls, monkeypatch):
    """Of shapes that are too many to be planned the others are executed all the same."""
    monkeypatch.setattr(packed, 'MAX_SHAPES', 0)
    net, x = network('ResNet3d'), clips('ResNet3d')
    with torch.no_grad():
        net(x)
        features, decisions = net(x)
    assert {executed < told for told, executed in calls} == {False, True}
    expected = one_by_one(net, x, monkeypatch)
    assert torch.equal(features, expected.features)
    assert torch.equal(decisions, expected.decisions)


@pytest.mark.parametrize('kind', ['hook', 'hook before', 'hook of all', 'forward'])
def test_what_watches_a_layer_sees_it(kind, calls):
    net, x, seen = network('ResNet2Plus1d'), clips('ResNet2Plus1d'), []
    second = stages_of(net)[0][1]
    with torch.no_grad():
        expected = net(x)
        told = calls[0][0]
        calls.clear()

        def note(module, *_):
            if module is second:
                seen.append(module)

        if kind == 'hook':
            handle = second.register_forward_hook(note)
        elif kind == 'hook before':
            handle = second.register_forward_pre_hook(note)
        elif kind == 'hook of all':
            handle = register_module_forward_hook(note)
        else:
            known = second.forward
            second.forward = lambda *args: note(second) or known(*args)
        try:
            found = net(x)
        finally:
            if kind == 'forward':
                del second.forward
            else:
                handle.remove()
    assert seen == [second]
    assert calls[:2] == ([] if kind == 'hook of all' else [(1, 1), (told - 2, told - 2)])
    assert torch.equal(found.features, expected.features)
    assert torch.equal(found.decisions, expected.decisions)


@pytest.mark.parametrize('row', [0, 2])
@pytest.mark.parametrize('gate_input', ['layer', 'block'])
def test_weights_that_are_not_finite_name_the_layer(row, gate_input):
    net = network('ResNet3d', gate_input=gate_input)
    layer = stages_of(net)[1][row]
    stack = net.layer1[1].gate_stack if gate_input == 'block' else layer.gate_stack
    stack.beta[row if gate_input == 'block' else 0] = math.nan
    message = f'^{layer.layer_name}: the weights of the gate are not finite'
    with torch.no_grad(), pytest.raises(FloatingPointError, match=message):
        net(clips('ResNet3d'))


def test_bad_input_is_refused():
    net, x = network('ResNet2Plus1d'), clips('ResNet2Plus1d')
    policy = torch.zeros(3, len(dynamic_layers(net)), 2)
    with torch.no_grad():
        with force_policies(net, policy), pytest.raises(ValueError, match='3 clips, got 2'):
            net(x)
        block = net.layer1[0]
        maps = torch.randn(2, 8, 9, 9).contiguous(memory_format=torch.channels_last)
        with pytest.raises(ValueError, match=r'layer1.0.conv1.*expected clips \(N, C, T, H, W\)'):
            block(maps)
        narrow = torch.randn(2, 5, 2, 9, 9).contiguous(memory_format=torch.channels_last_3d)
        with pytest.raises(RuntimeError, match='5'):
            block(narrow)


def test_gradients_are_those_of_layers():
    net, x = network('ResNet3d'), clips('ResNet3d').requires_grad_()
    net(x)[0].sum().backward()
    assert x.grad.abs().sum() > 0
