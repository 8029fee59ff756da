# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Residual blocks of a stage are executed by one call of compiled code."""

import math

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from benchmarking.memory import peak_bytes
from vared2_mmaction import optimize
from vared2_mmaction.deploy import blocks as module
from vared2_mmaction.deploy.blocks import ExecutedBlock, ExecutedStage
from vared2_mmaction.executors.cpu import blocks as native
from vared2_mmaction.executors.cpu import packed
from vared2_mmaction.executors.cpu.plan import adds_to_elements
from vared2_mmaction.models import dynamic_layers, force_policies

from ..compiling import needs_compiler
from ..models import comparing
from ..models.backbones import dynamic, listed, stock

NETWORKS = ('ResNet', 'ResNet3d', 'ResNet2Plus1d', 'ResNetTSM')

pytestmark = needs_compiler


def clips(name):
    """Clips of a network, of whose maps all have positions enough for PyTorch 2.8, which cannot add
    a residual to maps of one."""
    x = comparing.clips(name)
    if not adds_to_elements():
        x = torch.randn(*x.shape[:-2], *(2 * size for size in x.shape[-2:]))
    return x


def network(name, options=None, decided=True, **kwargs):
    """A dynamic network by compiled code, whose gates answer differently for each clip, or whose
    options are all open."""
    net = dynamic(name, options, **kwargs)
    for layer in dynamic_layers(net).values():
        if decided:
            torch.nn.init.normal_(layer.gate.fc2.weight, std=2)
    return optimize(net)


def stages_of(net):
    return [m for m in net.modules() if isinstance(m, ExecutedStage)]


def blocks_of(net):
    return [m for m in net.modules() if isinstance(m, ExecutedBlock)]


@pytest.fixture
def calls(monkeypatch):
    """How many layers the blocks have that each call of compiled code is told, and how many blocks
    it executes."""
    seen = []

    def execute(blocks, *args):
        found = native.execute(blocks, *args)
        seen.append(([len(list(block.executed())) for block in blocks], found.blocks))
        return found

    monkeypatch.setattr(module, 'execute', execute)
    return seen


def one_by_one(net, x, monkeypatch):
    """What a network makes of clips where every layer is called."""
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(module, '_is_compiled', lambda module: False)
        return net(x)


def assert_equal(found, expected):
    """Features and decisions, or features alone; compiled code is the same either way."""
    if isinstance(found, torch.Tensor):
        assert torch.equal(found, expected)
        return
    for own, other in zip(*(listed(f.features) for f in (found, expected)), strict=True):
        assert torch.equal(own, other)
    assert torch.equal(found.decisions, expected.decisions)


def whole_stages(net):
    """The calls of a network whose blocks are all executed by compiled code."""
    return [
        ([len(block.stages) + len(block.beside) for block in stage], len(stage))
        for stage in stages_of(net)
    ]


@pytest.mark.parametrize('decided', [True, False], ids=['decided', 'open'])
@pytest.mark.parametrize('name', NETWORKS)
def test_stages_of_dynamic_networks(name, decided, calls, monkeypatch):
    every = {'ResNetTSM': {}, 'ResNet': {'out_indices': (0, 1)}}
    every = every.get(name, {'out_indices': (0, 1, 2, 3)})
    net, x = network(name, {}, decided, **every), clips(name)
    before = x.clone()
    with torch.no_grad():
        net(x)  # what oneDNN convolves is planned
        calls.clear()
        found = net(x)
    if name == 'ResNetTSM':  # the first of two convolutions is behind a shift
        assert calls == [([1], 1)] * len(blocks_of(net))
    else:
        assert calls == whole_stages(net)
    assert_equal(found, one_by_one(net, x, monkeypatch))
    assert torch.equal(x, before)
    policy = torch.randint(0, 3, (2, len(dynamic_layers(net)), 2))
    with torch.no_grad(), force_policies(net, policy):
        assert_equal(net(x), one_by_one(net, x, monkeypatch))


@pytest.mark.parametrize('name', NETWORKS)
def test_stages_of_stock_networks(name, calls, monkeypatch):
    net, x = optimize(stock(name)), clips(name)
    with torch.no_grad():
        net(x)
        calls.clear()
        found = net(x)
    assert calls == ([([1], 1)] * len(blocks_of(net)) if name == 'ResNetTSM' else whole_stages(net))
    assert_equal(found, one_by_one(net, x, monkeypatch))


def test_layers_without_compiled_code_are_called(calls, monkeypatch):
    """Of shapes that are too many to be planned the others are executed all the same."""
    monkeypatch.setattr(packed, 'MAX_SHAPES', 0)
    net, x = network('ResNet3d'), clips('ResNet3d')
    with torch.no_grad():
        net(x)
        found = net(x)
    left = {executed < len(told) for told, executed in calls}
    # Of maps of one element some need no plan, but PyTorch 2.8 does not add to them.
    assert left == ({False, True} if adds_to_elements() else {True})
    assert_equal(found, one_by_one(net, x, monkeypatch))


def watch(module, kind, note):
    """Note calls of a module; returns what ends that."""
    if kind == 'hook':
        return module.register_forward_hook(note).remove
    if kind == 'hook before':
        return module.register_forward_pre_hook(note).remove
    if kind == 'hook of all':
        return register_module_forward_hook(note).remove
    known = module.forward
    module.forward = lambda *args: note(module) or known(*args)
    return lambda: delattr(module, 'forward')


@pytest.mark.parametrize('kind', ['hook', 'hook before', 'hook of all', 'forward'])
@pytest.mark.parametrize('part', ['layer', 'beside', 'downsample', 'block'])
def test_what_watches_a_part_sees_it(part, kind, calls):
    sizes = {'num_stages': 2, 'stage_blocks': (1, 2), 'out_indices': (1,), 'dilations': (1, 1)}
    sizes |= {'spatial_strides': (1, 2), 'temporal_strides': (1, 2)}
    net, x, seen = network(NETWORKS[2], **sizes), clips(NETWORKS[2]), []
    stage = stages_of(net)[1]
    block = stage[0]
    watched = {
        'layer': block.stages[1],
        'beside': block.beside[0],
        'downsample': block.downsample,
        'block': block,
    }[part]

    def note(module, *_):
        if module is watched:
            seen.append(module)

    with torch.no_grad():
        net(x)
        calls.clear()
        expected = net(x)
        usual = list(calls)
        calls.clear()
        unwatch = watch(watched, kind, note)
        found = net(x)
        unwatch()
    assert seen == [watched]
    if kind == 'hook of all':
        assert calls == []
    else:
        called = [([1], 1), ([2], 1)] if part == 'layer' else [([4], 1)]
        assert calls == [usual[0], *called, ([4], 1), *usual[2:]]
    assert_equal(found, expected)


def test_what_a_hook_keeps_stays_as_it_is():
    """Maps that a module was given, or has returned, are not overwritten."""
    net, x, kept = network('ResNet3d', stage_blocks=(3, 4, 6, 3)), clips('ResNet3d'), []

    def keep(_, args, y):
        kept.extend((tensor, tensor.clone()) for tensor in (*args, y))

    stage = stages_of(net)[2]
    for part in (stage, stage[2], stage[4]):
        part.register_forward_hook(keep)
    with torch.no_grad():
        for _ in range(2):
            net(x)
    assert len(kept) == 12
    for tensor, before in kept:
        assert torch.equal(tensor, before)


@pytest.mark.parametrize('row', [0, 2])
def test_weights_that_are_not_finite_name_the_layer(row):
    net = network('ResNet3d')
    layer = net.layer1[1].stages[row]
    layer.gate.fc2.bias.data[0] = math.nan
    layer.float()  # is told to the executor again
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


def test_residuals_are_overwritten(monkeypatch):
    """A block whose input nobody else sees needs no other map for its output."""
    net = network('ResNet3d', stage_blocks=(3, 4, 6, 3))
    x = torch.randn(1, 32, 8, 56, 56).contiguous(memory_format=torch.channels_last_3d)
    blocks = stages_of(net)[0][1:]

    @torch.no_grad()
    def peak():
        blocks(x)  # what oneDNN convolves is planned
        return peak_bytes(lambda: blocks(x), torch.device('cpu'), [x]) / (x.numel() * 4)

    at_once = peak()
    monkeypatch.setattr(module, '_is_compiled', lambda module: False)
    one_by_one = peak()
    assert at_once < 3 < one_by_one
