# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What gates see, and blocks that are run again."""

import collections
import copy

import pytest
import torch
from torch import nn

from vared2_mmaction import dynamize, force_policy
from vared2_mmaction.models import dynamic_layers, to_static
from vared2_mmaction.models.blocks import Checkpointed, block_of

from .backbones import STOCK, dynamic, listed


def test_gates_see_the_input_of_their_layers():
    net, x = dynamic('ResNet3d'), torch.randn(STOCK['ResNet3d'][1])
    seen = collections.defaultdict(list)
    for name, layer in dynamic_layers(net).items():
        assert layer.gate.in_channels == layer.in_channels
        for module in (layer, layer.gate):
            module.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0]))
    net(x)
    assert list(seen) == list(dynamic_layers(net))
    for first, *others in seen.values():
        (second,) = others
        assert torch.equal(first, second)


def test_stock_blocks_come_back_and_keep_checkpointing():
    for checkpointing in (True, False):
        net = dynamic('ResNet3d', with_cp=checkpointing)
        static = to_static(net)
        for block in static.layer1:
            assert isinstance(block, Checkpointed) == checkpointing
        with force_policy(net, 1, 1):  # the original still decides
            assert (net.eval() or net)(torch.randn(STOCK['ResNet3d'][1]))[1][:, 1:, 3].eq(1).all()


@pytest.mark.parametrize('name', ['ResNet3d', 'TANet', 'ResNet3dSlowFast', 'X3D'])
def test_what_calls_the_parts_of_a_block_runs_again_in_the_backward_pass(name):
    if name == 'ResNet3dSlowFast':
        config = copy.deepcopy(STOCK[name][0])
        for pathway in ('slow_pathway', 'fast_pathway'):
            config[pathway]['with_cp'] = True
        net = dynamic(name, **config)
    else:
        net = dynamic(name, with_cp=True)
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
