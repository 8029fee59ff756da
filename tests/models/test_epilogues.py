# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Fused networks add residuals and apply ReLU in their convolutions, where that is the same."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn

from vared2_mmaction.models import accelerate, dynamic_layers, force_policies, fuse
from vared2_mmaction.models.blocks import Checkpointed, parts_of
from vared2_mmaction.models.residual import FusedResidual

from ..compiling import needs_compiler
from .backbones import STOCK, dynamic, stock

RESIDUAL = {'ResNet': 8, 'ResNet3d': 16, 'ResNet2Plus1d': 8, 'ResNetTSM': 8, 'ResNet3dSlowOnly': 16}
"""Residual blocks of each network."""


def blocks(net):
    return [module for module in net.modules() if isinstance(module, FusedResidual)]


@pytest.mark.parametrize('name', RESIDUAL)
def test_nothing_is_left_of_residual_blocks(name):
    for net in (fuse(dynamic(name)), fuse(accelerate(stock(name)))):
        assert len(blocks(net)) == RESIDUAL[name]
        for block in blocks(net):
            assert type(block.relu) is nn.Identity
            assert block.stages[-1].relu
            left = [m for m in block.modules() if isinstance(m, nn.ReLU)]
            assert len(left) == (name == 'ResNetTSM')  # behind what shifts channels


def test_stages_are_the_convolutions():
    block = blocks(fuse(dynamic('ResNet2Plus1d')))[0]
    convolutions = [block.conv1.conv, block.conv2.conv]
    expected = [part for conv in convolutions for part in (conv.conv_s, conv.conv_t)]
    assert list(block.stages) == expected


@pytest.mark.parametrize('clone', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_equal_and_apart(clone):
    net, x = fuse(dynamic('ResNet2Plus1d')), torch.randn(2, 3, 8, 40, 40)
    with torch.no_grad():
        expected = net(x)[0]
        other = clone(net)
        for parameter in net.parameters():
            parameter.zero_()
        torch.testing.assert_close(other(x)[0], expected)
        assert not torch.equal(net(x)[0], expected)


@pytest.mark.parametrize('compiled', [False, pytest.param(True, marks=needs_compiler)])
def test_a_norm_that_would_be_divided_by_stays_where_it_is(compiled):
    """Channels die."""
    net = dynamic('ResNet2Plus1d', stage_blocks=(1, 1, 1, 1)).eval()
    x = torch.randn(2, 3, 8, 24, 24).contiguous(memory_format=torch.channels_last_3d)
    names = [n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm3d)]
    for name in names:
        nn.init.uniform_(net.get_submodule(name).weight, 0.5, 2)
        nn.init.uniform_(net.get_submodule(name).running_mean, -1, 1)
    last, first = 'layer1.0.conv2.bn', 'layer2.0.conv1.conv.bn_s'
    with torch.no_grad():
        for name in (last, first):
            net.get_submodule(name).weight[0] = 0
    fused = fuse(net, compiled)
    assert [n for n in names if isinstance(fused.get_submodule(n), nn.BatchNorm3d)] == [
        last,
        first,
    ]
    assert len(blocks(fused)) == 3  # all but the one whose last convolution is not its norm's
    policy = torch.randint(0, 3, (2, len(dynamic_layers(net)), 2))
    with torch.no_grad():
        for context in (lambda _: nullcontext(), lambda net: force_policies(net, policy)):
            with context(net), context(fused):
                (features, decisions), (found, again) = net(x), fused(x)
            scale = features.abs().max().item()
            torch.testing.assert_close(found, features, rtol=1e-4, atol=1e-4 * scale)
            assert torch.equal(again[..., :5], decisions[..., :5])
    if compiled:
        assert all(layer.compiled is not None for layer in dynamic_layers(fused).values())


def test_mixins_of_a_block_stay():
    net = dynamic('ResNet3d', with_cp=True)
    block = blocks(fuse(net))[0]
    assert parts_of(type(block))[:2] == (Checkpointed, FusedResidual)


def test_gradients_reach_what_is_before_a_fused_block():
    net, x = dynamic('ResNet3d'), torch.randn(STOCK['ResNet3d'][1])
    net.eval()
    given = []
    for model in (net, fuse(net)):
        inputs = x.clone().requires_grad_()
        model(inputs)[0].square().mean().backward()
        given.append(inputs.grad)
    torch.testing.assert_close(given[1], given[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('change', ['class', 'activation', 'order', 'hidden activation'])
def test_what_does_something_else_is_left_alone(change):
    net = stock('ResNet', depth=50)
    block = net.layer1[0]
    if change == 'class':
        known = type(block)
        other = {'forward': lambda self, x: known.forward(self, x) + 1}
        block.__class__ = type('Other', (known,), other)
    elif change == 'activation':
        block.relu = nn.GELU()
    elif change == 'order':
        block.conv2.order = ('act', 'conv', 'norm')
    else:
        block.conv2 = ConvModule(64, 64, 3, padding=1, act_cfg={'type': 'Sigmoid'})
    net.double()  # in float32 sixteen blocks leave more than 1e-4 to rounding
    net.eval()  # does not return the module
    fused = fuse(accelerate(copy.deepcopy(net)))
    assert len(blocks(fused)) == (15 if change in ('class', 'activation') else 16)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), net(x), rtol=1e-9, atol=1e-9)
