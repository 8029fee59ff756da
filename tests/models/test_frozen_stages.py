# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What the stock backbone freezes stays frozen; gates and cheap operations learn all the same."""

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vared2_mmaction.checkpoints.loading import is_own_parameter
from vared2_mmaction.models import dynamic_layers

from .backbones import STOCK, dynamic, stock

STAGES = {'ResNet': 2, 'ResNet3d': 4, 'ResNet2Plus1d': 4, 'X3D': 4, 'ResNet3dSlowOnly': 4}
STAGES |= {'ResNet3dCSN': 4, 'ResNetTSM': 4}


@pytest.mark.parametrize('option', ['frozen_stages', 'norm_eval', 'neither'])
@pytest.mark.parametrize('name', STAGES)
def test_gates_learn_and_what_is_frozen_does_not(name, option):
    kwargs = {'norm_eval': option == 'norm_eval'}
    if option == 'frozen_stages':
        kwargs['frozen_stages'] = STAGES[name]
    twin, net = stock(name, **kwargs), dynamic(name, **kwargs)
    for each in (twin, net):
        each.train()
        each.train(False)
        each.train()
    expected = {k: p.requires_grad for k, p in twin.named_parameters()}
    norms = {k: m.training for k, m in twin.named_modules() if isinstance(m, _BatchNorm)}
    assert set(norms.values()) == {option == 'neither'} or option == 'frozen_stages'
    for key, parameter in net.named_parameters():
        assert parameter.requires_grad == expected.get(key, True)
    for key, module in net.named_modules():
        if isinstance(module, _BatchNorm):
            assert module.training == norms.get(key, True), key

    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for layer in dynamic_layers(net).values():  # so that all of a gate has a gradient
        nn.init.normal_(layer.gate.fc2.weight, std=0.2)
        before |= {k: v.clone() for k, v in net.state_dict().items() if k.endswith('fc2.weight')}
    _, decisions = net(torch.randn(STOCK[name][1]))
    (decisions[..., 0].sum() / decisions[..., 1].sum()).backward()
    optimizer.step()
    for key, value in net.state_dict().items():
        changed = not torch.equal(value, before[key])
        if key.endswith(('gate.fc2.bias', 'gate.bn.running_mean')):
            assert changed, key
        if not is_own_parameter(key) and option == 'frozen_stages' and 'layer' in key:
            assert not changed, key


def test_gates_in_evaluation_mode_keep_their_statistics():
    net = dynamic('ResNet2Plus1d')
    net.train().eval()
    assert not any(module.training for module in net.modules())
