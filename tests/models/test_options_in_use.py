# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Networks with options out of use: checkpoints, forced policies and costs."""

import pytest
import torch
from mmengine.runner import load_checkpoint

from vared2_mmaction import force_policy, static_cost
from vared2_mmaction.models import dynamic_layers, force_policies

from .backbones import STOCK, dynamic

pytestmark = pytest.mark.fast
NAME = 'ResNet2Plus1d'
SMALL = {'stage_blocks': (1, 1, 1, 1), 'base_channels': 4}
CLIP = STOCK[NAME][1]


def network():
    net = dynamic(NAME, **SMALL)
    net.eval()
    return net


def take_out(net):
    """Leave few options in use, others in each layer."""
    choices = [(0, 1), (1,), (0, 2), (1, 2), (2,)]
    for n, layer in enumerate(dynamic_layers(net).values()):
        layer.channel_options.use(choices[n % 5])
        layer.temporal_options.use(choices[n // 2 % 5])


def in_use(net):
    return [layer.in_use for layer in dynamic_layers(net).values()]


@pytest.mark.parametrize('load', ['torch', 'mmengine', 'mmengine, strict'])
def test_what_is_in_use_comes_back_with_a_checkpoint(load, tmp_path):
    net, other = network(), network()
    take_out(net)
    if load == 'torch':
        other.load_state_dict(net.state_dict(), strict=True)
    else:
        path = str(tmp_path / 'net.pth')
        torch.save({'state_dict': net.state_dict()}, path)
        load_checkpoint(other, path, strict=load.endswith('strict'))
    assert in_use(other) == in_use(net)
    x = torch.randn(CLIP)
    with torch.no_grad():
        assert all(map(torch.equal, other(x), net(x)))


@pytest.mark.parametrize('load', ['torch', 'mmengine', 'mmengine, strict'])
def test_checkpoints_of_before_have_all_options_in_use(load, tmp_path):
    net, other = network(), network()
    take_out(other)
    state = {k: v for k, v in net.state_dict().items() if not k.endswith('_options.used')}
    assert len(net.state_dict()) - len(state) == 2 * len(dynamic_layers(net))
    if load == 'torch':
        other.load_state_dict(state, strict=True)
    else:
        path = str(tmp_path / 'net.pth')
        torch.save({'state_dict': state}, path)
        load_checkpoint(other, path, strict=load.endswith('strict'))
    assert in_use(other) == in_use(net)
    x = torch.randn(CLIP)
    with torch.no_grad():
        assert all(map(torch.equal, other(x), net(x)))


def test_policies_beyond_what_is_in_use_are_refused_by_the_name_of_the_layer():
    net = network()
    layer = net.layer2[0].conv1.conv.conv_t
    layer.channel_options.use((1, 2))
    layer.temporal_options.use((0, 1))
    message = r'^layer2\.0\.conv1\.conv\.conv_t: {} option {} is out of use; in use are \({}\)$'
    with pytest.raises(ValueError, match=message.format('channel', 0, '1, 2')):
        force_policy(net, 0, 0).__enter__()
    with pytest.raises(ValueError, match=message.format('temporal', 2, '0, 1')):
        force_policy(net, 1, 2).__enter__()
    layers = list(dynamic_layers(net).values())
    policy = torch.ones(2, len(layers), 2, dtype=torch.long)
    policy[1, layers.index(layer), 0] = 0
    with pytest.raises(ValueError, match=message.format('channel', 0, '1, 2')):
        force_policies(net, policy)
    with torch.no_grad(), force_policy(net, 1, 1):
        _, decisions = net(torch.randn(CLIP))
    assert decisions[:, 1:, 3].eq(1).all()


def test_static_cost_stays_that_of_the_stock_network():
    net = network()
    before = static_cost(net, CLIP[1:])
    take_out(net)
    assert static_cost(net, CLIP[1:]) == before
    with torch.no_grad():
        _, decisions = net(torch.randn(CLIP))
    executed, static = decisions.sum(1)[0, :2].tolist()
    assert executed < static == before
