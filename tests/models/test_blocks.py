# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Blocks that decide for their layers together."""

import collections
import copy

import pytest
import torch
from torch import nn

from vared2_mmaction import dynamize, force_policy
from vared2_mmaction.models import dynamic_layers, fuse, to_static
from vared2_mmaction.models.blocks import Checkpointed, Deciding, block_of

from ..compiling import needs_compiler
from .backbones import STOCK, dynamic, listed

BLOCK = {'gate_input': 'block'}


@pytest.mark.parametrize('name', [n for n in STOCK if n != 'C3D'])
def test_a_block_describes_its_input_once(name, monkeypatch):
    from vared2_mmaction.ops import joint

    seen = []
    describe = joint.describe
    monkeypatch.setattr(joint, 'describe', lambda x, *args: seen.append(x) or describe(x, *args))
    net = dynamic(name, BLOCK)
    net.eval()
    blocks = [module for module in net.modules() if isinstance(module, Deciding)]
    layers = [layer for block in blocks for layer in block.decides_for]
    assert set(layers) == set(dynamic_layers(net).values())
    assert len(layers) > len(blocks)
    with torch.no_grad():
        net(torch.randn(STOCK[name][1]))
    assert len(seen) == len(blocks)


def test_a_layer_follows_the_gate_of_its_block():
    net, x = dynamic('ResNet3d', BLOCK), torch.randn(STOCK['ResNet3d'][1])
    net.eval()
    names = list(dynamic_layers(net))
    layer = dynamic_layers(net)[names[4]]
    with torch.no_grad():
        before = net(x)[1][:, 1:, 3:5]
        layer.gate.fc2.weight.zero_()
        layer.gate.fc2.bias.copy_(torch.tensor([-1.0, 1, -1, -1, -1, 1]))
        after = net(x)[1][:, 1:, 3:5]
    assert (before == 0).all()
    assert after[:, 4].tolist() == [[1, 2]] * 2
    assert (after.flatten(0, 1).sum(1) > 0).sum() == 2


def test_gates_see_their_own_layers_unless_told():
    net = dynamic('ResNet3d')
    assert not any(isinstance(module, Deciding) for module in net.modules())
    for layer in dynamic_layers(net).values():
        assert layer.gate.in_channels == layer.in_channels


@pytest.mark.parametrize('compiled', [False, pytest.param(True, marks=needs_compiler)])
@pytest.mark.parametrize('gate_input', ['block', 'layer'])
@pytest.mark.parametrize('name', STOCK)
def test_fused_gates_answer_as_the_unfused(name, gate_input, compiled):
    net, x = dynamic(name, {'gate_input': gate_input}), torch.randn(STOCK[name][1])
    for layer in dynamic_layers(net).values():
        nn.init.normal_(layer.gate.fc2.weight, std=2)
        nn.init.normal_(layer.gate.fc2.bias, std=1)
    net.eval()
    with torch.no_grad():
        features, decisions = net(x)
        found, again = fuse(net, compiled)(x)
    for a, b in zip(listed(found), listed(features), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())
    assert torch.equal(again[..., :5], decisions[..., :5])
    assert len(decisions[:, 1:, 3:5].unique(dim=1)[0]) > 1


def test_what_the_first_convolution_reads_is_what_gates_see():
    chosen = {
        'layers': r'layer\d\.\d\.conv3',
        **BLOCK,
    }  # the first convolution of a block is not dynamic
    net, x = dynamic('ResNet3d', chosen), torch.randn(STOCK['ResNet3d'][1])
    layers = dynamic_layers(net)
    for name, layer in layers.items():
        block = net.get_submodule(block_of(name))
        assert isinstance(block, Deciding)
        assert layer.gate.in_channels == block.conv1.conv.in_channels
    assert any(layer.gate.in_channels != layer.in_channels for layer in layers.values())
    net.eval()
    with torch.no_grad():
        net(x)


def test_a_block_that_reads_something_else_is_named():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.second = nn.Conv3d(8, 4, 1)
            self.first = nn.Conv3d(4, 8, 1)

        def forward(self, x):
            return self.second(self.first(x))

    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer1 = nn.Sequential(Block())

        def forward(self, x):
            return self.layer1(x)

    x = torch.randn(2, 4, 4, 5, 5)
    with pytest.raises(ValueError, match=r"layer1\.0: expected 8 channels.*\(2, 4, 4.*'layer'"):
        dynamize(Backbone(), **BLOCK)(x)
    features, _ = dynamize(Backbone())(x)
    assert features.shape == x.shape


def test_stock_blocks_come_back_and_keep_checkpointing():
    for checkpointing in (True, False):
        net = dynamic('ResNet3d', BLOCK, with_cp=checkpointing)
        static = to_static(net)
        for block in static.layer1:
            assert not isinstance(block, Deciding)
            assert isinstance(block, Checkpointed) == checkpointing
        with force_policy(net, 1, 1):  # the original still decides
            assert (net.eval() or net)(torch.randn(STOCK['ResNet3d'][1]))[1][:, 1:, 3].eq(1).all()


@pytest.mark.parametrize('gate_input', ['layer', 'block'])
@pytest.mark.parametrize('name', ['ResNet3d', 'TANet', 'ResNet3dSlowFast', 'X3D'])
def test_what_calls_the_parts_of_a_block_runs_again_in_the_backward_pass(name, gate_input):
    if name == 'ResNet3dSlowFast':
        config = copy.deepcopy(STOCK[name][0])
        for pathway in ('slow_pathway', 'fast_pathway'):
            config[pathway]['with_cp'] = True
        net = dynamic(name, {'gate_input': gate_input}, **config)
    else:
        net = dynamic(name, {'gate_input': gate_input}, with_cp=True)
    runs = collections.Counter()
    for layer in dynamic_layers(net).values():
        layer.register_forward_hook(lambda layer, *_: runs.update([layer]))
    net.train()
    features, decisions = net(torch.randn(STOCK[name][1]))
    assert set(runs.values()) == {1}
    (sum(f.sum() for f in listed(features)) + decisions[..., 0].sum()).backward()
    assert set(runs.values()) == {2}
    assert sum(isinstance(m, Checkpointed) for m in net.modules()) == len(
        {block_of(name) for name in net.dynamic_layers}
    )


def test_a_backbone_that_checkpoints_itself_is_left_alone():
    net = nn.Sequential(nn.Conv3d(3, 4, 1))
    net.with_cp = True
    dynamize(net, layers='0')
    assert net.with_cp
    assert not isinstance(net, Checkpointed)


@pytest.mark.parametrize(
    ('layer', 'block'),
    [
        ('layer1.0.conv1.conv.conv_s', 'layer1.0'),
        ('slow_path.layer3.12.conv2.conv', 'slow_path.layer3.12'),
        ('conv1.conv', None),
        ('layer1.conv', None),
    ],
)
def test_the_block_of_a_layer(layer, block):
    assert block_of(layer) == block
