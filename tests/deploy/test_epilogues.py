# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Optimised networks add residuals and apply ReLU in their convolutions, where that is the same."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn

from vared2_mmaction import optimize
from vared2_mmaction.deploy.blocks import ExecutedBlock
from vared2_mmaction.models import dynamic_layers, force_policies

from ..compiling import EXECUTORS
from ..models.backbones import STOCK, dynamic, stock

RESIDUAL = {'ResNet': 4, 'ResNet3d': 5, 'ResNet2Plus1d': 5, 'ResNetTSM': 8, 'ResNet3dSlowOnly': 5}
"""Residual blocks of each network."""


def blocks(net):
    return [module for module in net.modules() if isinstance(module, ExecutedBlock)]


@pytest.mark.parametrize('name', RESIDUAL)
def test_nothing_is_left_of_residual_blocks(name):
    for net in (optimize(dynamic(name)), optimize(stock(name))):
        assert len(blocks(net)) == RESIDUAL[name]
        for block in blocks(net):
            assert type(block.relu) is nn.Identity
            assert block.stages[-1].relu
            left = [m for m in block.modules() if isinstance(m, nn.ReLU)]
            assert len(left) == (name == 'ResNetTSM')  # behind what shifts channels


def test_stages_are_the_convolutions():
    block = blocks(optimize(dynamic('ResNet2Plus1d')))[0]
    convolutions = [block.conv1.conv, block.conv2.conv]
    expected = [part for conv in convolutions for part in (conv.conv_s, conv.conv_t)]
    assert list(block.stages) == expected


@pytest.mark.parametrize('clone', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_equal_and_apart(clone):
    net, x = optimize(dynamic('ResNet2Plus1d')), torch.randn(2, 3, 8, 40, 40)
    with torch.no_grad():
        expected = net(x)[0]
        other = clone(net)
        for parameter in net.parameters():
            parameter.zero_()
        net.float()  # is told to executors again
        torch.testing.assert_close(other(x)[0], expected)
        assert not torch.equal(net(x)[0], expected)


@pytest.mark.parametrize('executor', EXECUTORS)
def test_a_norm_that_would_be_divided_by_stays_where_it_is(executor):
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
    fast = optimize(net, executor=executor)
    assert [n for n in names if isinstance(fast.get_submodule(n), nn.BatchNorm3d)] == [
        last,
        first,
    ]
    assert len(blocks(fast)) == 3  # all but the one whose last convolution is not its norm's
    policy = torch.randint(0, 3, (2, len(dynamic_layers(net)), 2))
    with torch.no_grad():
        for context in (lambda _: nullcontext(), lambda net: force_policies(net, policy)):
            with context(net), context(fast):
                (features, decisions), (found, again) = net(x), fast(x)
            scale = features.abs().max().item()
            torch.testing.assert_close(found, features, rtol=1e-4, atol=1e-4 * scale)
            assert torch.equal(again[..., :5], decisions[..., :5])
    assert all(layer.executed_by == executor for layer in dynamic_layers(fast).values())


def test_blocks_that_save_memory_in_training_are_executed():
    net = optimize(dynamic('ResNet3d', with_cp=True, stage_blocks=(3, 4, 6, 3)))
    assert len(blocks(net)) == 16


def test_gradients_reach_what_is_before_a_fast_block():
    net, x = dynamic('ResNet3d'), torch.randn(STOCK['ResNet3d'][1])
    net.eval()
    given = []
    for model in (net, optimize(net)):
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
    net.double()  # in float32 the blocks leave more than 1e-4 to rounding
    net.eval()  # does not return the module
    fast = optimize(net)
    assert len(blocks(fast)) == (6 if change in ('class', 'activation') else 7)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x), rtol=1e-9, atol=1e-9)
