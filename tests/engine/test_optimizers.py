# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Optimizer constructors: every parameter once, and those of the stock network as in it."""

import copy
import functools

import pytest
import torch
from mmaction.registry import MODELS
from mmaction.utils import register_all_modules
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from torch import nn

from vared2_mmaction.checkpoints.loading import is_own_parameter

register_all_modules()

CLASSES = 3
HEAD = {'type': 'TSNHead', 'num_classes': CLASSES, 'in_channels': 512}
NETWORKS = {
    'TSN': ({'type': 'ResNet', 'depth': 18}, {'num_segments': 4}, HEAD, 'Recognizer2D'),
    'TSM': ({'type': 'ResNetTSM', 'depth': 18, 'num_segments': 4}, {}, HEAD, 'Recognizer2D'),
    'X3D': (
        {'type': 'X3D', 'gamma_w': 1, 'gamma_b': 2.25, 'gamma_d': 1},
        {},
        {'type': 'X3DHead', 'num_classes': CLASSES, 'in_channels': 432},
        'Recognizer3D',
    ),
    'C3D': (  # its convolutions have biases
        {'type': 'C3D', 'out_dim': 8},
        {},
        {'type': 'I3DHead', 'num_classes': CLASSES, 'in_channels': 4096, 'spatial_type': None},
        'Recognizer3D',
    ),
}
CONSTRUCTORS = {
    'TSM': {'constructor': 'TSMOptimWrapperConstructor', 'paramwise_cfg': {'fc_lr5': True}},
    'TSM without fc_lr5': {
        'constructor': 'TSMOptimWrapperConstructor',
        'paramwise_cfg': {'fc_lr5': False},
    },
    'Swin': {
        'constructor': 'SwinOptimWrapperConstructor',
        'paramwise_cfg': {'backbone': {'lr_mult': 0.1}, 'conv1': {'decay_mult': 0.0}},
    },
    'MMEngine without options': {},
    'MMEngine': {
        'paramwise_cfg': {
            'norm_decay_mult': 0.0,
            'bias_decay_mult': 0.5,
            'bias_lr_mult': 2.0,
            'dwconv_decay_mult': 0.25,
            'flat_decay_mult': 0.125,
            'bypass_duplicate': True,
            'custom_keys': {'layer2': {'lr_mult': 3.0}, 'gate': {'lr_mult': 10.0}},
        }
    },
}


@functools.cache
def networks(name):
    """A stock recognizer and its dynamic twin; nobody changes them."""
    backbone, dynamic, head, kind = NETWORKS[name]
    stock = {'type': kind, 'backbone': backbone, 'cls_head': head}
    ours = {
        'type': kind,
        'backbone': {'type': 'VARED2Backbone', 'backbone': backbone, 'dynamic': dynamic},
        'neck': {'type': 'SoftModulationGateNeck'},
        'cls_head': {'type': 'VARED2Head', 'head': head},
    }
    return MODELS.build(copy.deepcopy(stock)), MODELS.build(copy.deepcopy(ours))


def settings(model, constructor):
    """What an optimizer does with each parameter: (lr, weight decay) of every group it is in."""
    MMLogger.get_current_instance().setLevel('ERROR')
    optimizer = {'type': 'SGD', 'lr': 0.01, 'weight_decay': 0.1}
    wrapper = build_optim_wrapper(model, {'optimizer': optimizer, **copy.deepcopy(constructor)})
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {name: [] for name in names.values()}
    for group in wrapper.optimizer.param_groups:
        for parameter in group['params']:
            found[names[parameter]].append((group['lr'], group['weight_decay']))
    return found


@pytest.mark.parametrize('network', NETWORKS)
@pytest.mark.parametrize('constructor', CONSTRUCTORS)
def test_every_parameter_once_and_stock_ones_as_in_stock(constructor, network):
    stock, ours = networks(network)
    keys = list(ours.state_dict())
    expected, found = (settings(model, CONSTRUCTORS[constructor]) for model in (stock, ours))
    assert list(ours.state_dict()) == keys
    assert {len(groups) for groups in found.values()} == {1}
    own = {name for name in found if is_own_parameter(name)}
    assert own
    assert {name: groups for name, groups in found.items() if name not in own} == expected


@pytest.mark.parametrize('network', ['TSM', 'C3D'])
def test_gates_and_cheap_operations_follow_the_rules_of_tsm(network):
    _, ours = networks(network)
    for name, (group,) in settings(ours, CONSTRUCTORS['TSM']).items():
        if is_own_parameter(name):
            norm, bias = '.gate.bn.' in name, name.endswith('bias')
            assert group == ((0.01, 0) if norm else (0.02, 0) if bias else (0.01, 0.1)), name


def test_a_step_of_tsms_optimizer_moves_everything():
    ours = copy.deepcopy(networks('TSM')[1])
    optimizer = {'type': 'SGD', 'lr': 0.01, 'weight_decay': 0.1}
    wrapper = build_optim_wrapper(ours, {'optimizer': optimizer, **CONSTRUCTORS['TSM']})
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}
    for parameter in ours.parameters():
        parameter.grad = torch.ones_like(parameter)
    wrapper.step()
    for name, parameter in ours.named_parameters():
        assert not torch.equal(before[name], parameter), name


@pytest.mark.parametrize('kind', ['LearningRateDecayOptimizerConstructor'])
def test_constructors_of_transformers_refuse_stock_and_dynamic_networks_alike(kind):
    constructor = {
        'constructor': kind,
        'paramwise_cfg': {'num_layers': 4, 'decay_rate': 0.9, 'decay_type': 'layer_wise'},
    }
    for model in networks('C3D'):
        with pytest.raises((NotImplementedError, AssertionError)):
            settings(model, constructor)


def test_an_error_leaves_the_network_whole():
    ours = copy.deepcopy(networks('TSN')[1])
    ours.backbone.add_module('odd', nn.PReLU())
    keys = list(ours.state_dict())
    with pytest.raises(ValueError, match='New atomic module type: .*PReLU'):
        settings(ours, CONSTRUCTORS['TSM'])
    assert list(ours.state_dict()) == keys
