# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Optimised networks compute what networks do, and say what executes them."""

import dataclasses

import pytest
import torch
from mmaction.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vared2_mmaction import dynamize, force_policy, optimize, set_budget, static_cost
from vared2_mmaction.deploy import executed
from vared2_mmaction.executors import BACKENDS, ExecutedConv
from vared2_mmaction.models import dynamic_layers, force_policies

from ..compiling import EXECUTORS, needs_compiler
from ..models.backbones import SHORT, STOCK, dynamic, stock
from ..models.comparing import clips, randomise, randomise_norms, relative


@pytest.mark.parametrize('executor', ['eager', pytest.param('cpu', marks=needs_compiler)])
@pytest.mark.parametrize('name', STOCK)
def test_optimised_networks_equal_those_that_are_not(name, executor):
    twin, x = stock(name, **SHORT[name]), clips(name)
    net = dynamic(name, **SHORT[name])
    randomise(net)
    for model in (twin, net):
        randomise_norms(model)
        model.eval()
    layers = dynamic_layers(net)
    fast, fast_twin = (optimize(model, executor=executor) for model in (net, twin))
    before, left, left_in_twin = (
        [n for n, m in model.named_modules() if isinstance(m, _BatchNorm)]
        for model in (net, fast, fast_twin)
    )
    assert all('.tam.G.' in n for n in left_in_twin)  # behind a linear layer
    behind = [
        n for n in before if any(key.startswith(f'{n.rpartition(".")[0]}.') for key in layers)
    ]
    assert bool(behind) == (name != 'C3D')  # and all are folded
    assert left == [n for n in before if n in left_in_twin]
    assert list(dynamic_layers(fast)) == list(layers)
    policy = torch.randint(0, 3, (2, len(layers), 2))
    with torch.no_grad():
        assert relative(fast_twin(x), twin(x)) <= 1e-4
        features, decisions = net(x)
        found, again = fast(x)
        assert relative(found, features) <= 1e-4
        assert torch.equal(again, decisions)
        for forced in (torch.zeros(2, len(layers), 2), policy):
            with force_policies(net, forced), force_policies(fast, forced):
                assert relative(fast(x)[0], net(x)[0]) <= 1e-4
    kept = any(layer.tensors() for layer in dynamic_layers(fast).values())
    if name == 'C3D':  # whose kernels are 3 x 3 x 3: only tiles pack them
        assert kept == any(layer.executor for layer in dynamic_layers(fast).values())
    else:
        assert kept == torch.backends.mkldnn.is_available()


@pytest.mark.parametrize('executor', EXECUTORS)
def test_norms_that_begin_with_zero_are_folded(executor):
    net, x = dynamic('ResNet3dSlowOnly'), clips('ResNet3dSlowOnly')
    randomise(net)
    net.eval()
    assert not net.layer1[0].conv3.bn.weight.any()
    fast = optimize(net, executor=executor)
    assert not any(isinstance(module, _BatchNorm) for module in fast.modules())
    policy = torch.randint(0, 3, (2, len(dynamic_layers(net)), 2))
    with torch.no_grad():
        expected, decisions = net(x)
        features, found = fast(x)
        assert relative(features, expected) <= 1e-4
        assert torch.equal(found, decisions)
        with force_policies(net, policy), force_policies(fast, policy):
            assert relative(fast(x)[0], net(x)[0]) <= 1e-4


@pytest.mark.parametrize('groups', [1, 2])
def test_transposed_convolutions_are_folded(groups):
    upward = nn.ConvTranspose3d(6, 4, 3, stride=2, groups=groups)
    net = dynamize(
        nn.Sequential(nn.Conv3d(3, 6, 1), nn.BatchNorm3d(6), upward, nn.BatchNorm3d(4)),
        layers='0',
    )
    randomise_norms(net)
    net.eval()
    fast, clip = optimize(net), torch.randn(1, 3, 4, 5, 6)
    # PyTorch folds no norm into the groups of a transposed convolution.
    left = [n for n, m in fast.named_modules() if isinstance(m, _BatchNorm)]
    assert left == ([] if groups == 1 else ['3'])
    with torch.no_grad():
        (features, decisions), (found, again) = net(clip), fast(clip)
    assert relative(found, features) <= 1e-4
    assert torch.equal(again, decisions)


@pytest.mark.parametrize('executor', EXECUTORS)
def test_options_out_of_use(executor):
    net, x = dynamic('ResNet2Plus1d'), clips('ResNet2Plus1d')
    randomise(net)
    net.eval()
    choices = [(0, 1), (1,), (1, 2), (0, 2), (2,)]
    for n, layer in enumerate(dynamic_layers(net).values()):
        layer.channel_options.use(choices[n % 5])
        layer.temporal_options.use(choices[n // 2 % 5])
    fast = optimize(net, executor=executor)
    with torch.no_grad():
        (features, decisions), (found, again) = net(x), fast(x)
        assert relative(found, features) <= 1e-4
        assert torch.equal(again, decisions)
        with pytest.raises(ValueError, match='out of use'), force_policy(fast, 0, 0):
            fast(x)


def test_what_executes_is_said():
    net, x = dynamic('ResNet2Plus1d'), clips('ResNet2Plus1d')
    slow = optimize(net, x, executor='eager')
    assert executed(slow) == 'executed: 28 convolutions by eager, in 5 residual blocks'
    layer = slow.layer1[0].conv1.conv.conv_s
    assert isinstance(layer, ExecutedConv)
    assert 'DynamicConv3d, executed by eager' in str(layer)
    assert executed(net) == 'executed: nothing'
    with pytest.raises(ValueError, match="executor='gpu': expected one of eager, cpu"):
        optimize(net, executor='gpu')


def test_what_is_available_is_chosen(monkeypatch):
    net = nn.Sequential(nn.Conv3d(3, 6, 1), nn.ReLU())
    if BACKENDS['cpu'].is_available():
        assert executed(optimize(net)) == 'executed: 1 convolution by cpu (C++)'
    monkeypatch.setitem(
        BACKENDS, 'cpu', dataclasses.replace(BACKENDS['cpu'], is_available=lambda: False)
    )
    assert executed(optimize(net)) == 'executed: 1 convolution by eager'


def test_what_only_stands_beside_each_other_is_not_folded():
    """UniFormer registers a norm right behind a convolution whose output it does not get."""
    options = {'depth': [1, 1, 1, 1], 'embed_dim': [8, 16, 16, 16], 'head_dim': 8, 'img_size': 32}
    net = MODELS.build({'type': 'mmaction.UniFormer', **options})
    randomise_norms(net)
    net.eval()
    x = torch.randn(1, 3, 8, 32, 32)
    with torch.no_grad():
        assert relative(optimize(net)(x), net(x)) <= 1e-4


def test_convolutions_over_joints_stay_as_they_are():
    graph = {'layout': 'coco', 'mode': 'spatial'}
    stages = {'base_channels': 4, 'num_stages': 2, 'inflate_stages': [2], 'down_stages': [2]}
    net = MODELS.build({'type': 'mmaction.AAGCN', 'graph_cfg': graph, **stages})
    randomise_norms(net)
    net.eval()
    x = torch.randn(1, 2, 8, 17, 3)
    with torch.no_grad():
        assert relative(optimize(net)(x), net(x)) <= 1e-4


@pytest.mark.parametrize('executor', EXECUTORS)
def test_a_copy_that_is_made_under_a_policy_decides_for_itself(executor):
    net, x = dynamic('ResNet3d'), clips('ResNet3d')
    randomise(net)
    net.eval()
    with force_policy(net, 2, 2):
        fast = optimize(net, executor=executor)
    with torch.no_grad():
        assert torch.equal(fast(x).decisions, net(x).decisions)


@pytest.mark.parametrize('executor', EXECUTORS)
def test_no_clip_gives_no_features(executor):
    net = dynamic('ResNet3d')
    net.eval()
    nothing = clips('ResNet3d')[:0]
    with torch.no_grad():
        expected, found = net(nothing), optimize(net, executor=executor)(nothing)
    for a, b in zip(expected, found, strict=True):
        assert a.shape == b.shape


@pytest.mark.parametrize('executor', EXECUTORS)
def test_a_copy_is_not_traced_or_exported(executor):
    net, x = dynamic('ResNet3d', **SHORT['ResNet3d']), clips('ResNet3d')
    net.eval()
    fast = optimize(net, executor=executor)
    with torch.no_grad():
        for record in (torch.jit.trace, torch.export.export):
            with pytest.raises(Exception, match='the network that optimize was given, to trace or'):
                record(fast, (x,))
        assert torch.equal(fast(x).decisions, net(x).decisions)


def test_what_wants_the_network_refuses_its_copy():
    fast = optimize(dynamic('ResNet3d'))
    message = 'expected the network that optimize was given'
    with pytest.raises(ValueError, match=message):
        static_cost(fast, (3, 16, 32, 32))
    with pytest.raises(ValueError, match=message):
        set_budget(fast, 0.5, [clips('ResNet3d')])
