# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What stock backbones load a part of when they are initialised, dynamic ones do as well."""

import pytest
import torch
from mmaction.registry import MODELS
from mmengine.runner import load_checkpoint
from torch import nn

from vared2_mmaction import dynamize
from vared2_mmaction.checkpoints.loading import is_own_parameter
from vared2_mmaction.models import dynamic_layers

from ..models.backbones import narrow

PLACES = ((0,), (0, 1, 0, 0), (0,), (0,))
NON_LOCAL = {'sub_sample': True, 'use_scale': False, 'norm_cfg': {'type': 'BN3d'}}
TSM = {'type': 'mmaction.ResNetTSM', 'depth': 18, 'num_segments': 4}


def pretrained_2d(path, depth=18):
    """A file as torchvision's, whose names MMAction2 converts, with a layer that nobody has."""
    torch.manual_seed(1)
    network = narrow(MODELS.build({'type': 'mmaction.ResNet', 'depth': depth}))
    network.init_weights()
    state = {}
    for key, value in network.state_dict().items():
        key = key.replace('downsample.conv', 'downsample.0')
        key = key.replace('downsample.bn', 'downsample.1')
        for number in (1, 2, 3):
            key = key.replace(f'conv{number}.conv', f'conv{number}')
            key = key.replace(f'conv{number}.bn', f'bn{number}')
        state[key] = torch.randn_like(value) if value.is_floating_point() else value
    state['fc.weight'] = torch.zeros(3, 5)
    torch.save(state, path)


@pytest.mark.parametrize(
    'config',
    [
        {
            **TSM,
            'depth': 50,
            'non_local': ((0,), (0, 1, 0, 0), (0,), (0,)),
            'non_local_cfg': NON_LOCAL,
        },
        TSM,
        {'type': 'mmaction.ResNet3d', 'depth': 18, 'pretrained2d': True},
        {'type': 'mmaction.ResNet', 'depth': 18},
        {**TSM, 'depth': 34},
    ],
    ids=['non-local', 'TSM', 'inflated', 'torchvision', 'deeper'],
)
def test_a_part_is_loaded_as_in_stock(config, tmp_path):
    path = str(tmp_path / 'resnet.pth')
    pretrained_2d(path, 18 if config['depth'] == 34 else config['depth'])
    stock, dynamic = (narrow(MODELS.build({**config, 'pretrained': path})) for _ in range(2))
    torch.manual_seed(0)
    stock.init_weights()
    segments = {'num_segments': 4} if config['type'] == 'mmaction.ResNet' else {}
    dynamize(dynamic, **segments)
    gates = {k: v.clone() for k, v in dynamic.state_dict().items() if is_own_parameter(k)}
    dynamic.init_weights()
    found = dynamic.state_dict()
    saved = {key: value for key, value in torch.load(path).items()}
    loaded = [
        key
        for key, value in stock.state_dict().items()
        if any(value.shape == s.shape and torch.equal(value, s) for s in saved.values())
        or (value.dim() == 5 and 'non_local' not in key)  # inflated
    ]
    assert len(loaded) > 60
    for key in loaded:
        assert torch.equal(found[key], stock.state_dict()[key]), key
    assert gates
    for key, value in gates.items():
        assert torch.equal(found[key], value), key


def test_gates_of_a_pretrained_file_are_taken(tmp_path):
    path = str(tmp_path / 'dynamic.pth')
    config = {'type': 'mmaction.ResNet3d', 'depth': 18, 'base_channels': 4, 'pretrained2d': False}
    trained = dynamize(MODELS.build({**config, 'pretrained': None}))
    for parameter in trained.parameters():
        nn.init.normal_(parameter)
    for layer in dynamic_layers(trained).values():
        layer.channel_options.use([1])
        layer.temporal_options.use([0, 2])
    torch.save(trained.state_dict(), path)
    fresh = dynamize(MODELS.build({**config, 'pretrained': path}))
    fresh.init_weights()
    for key, value in fresh.state_dict().items():
        assert torch.equal(value, trained.state_dict()[key]), key
    assert {layer.in_use for layer in dynamic_layers(fresh).values()} == {((1,), (0, 2))}


def test_afterwards_the_checkpoint_of_another_network_is_refused(tmp_path):
    path = str(tmp_path / 'resnet18.pth')
    pretrained_2d(path)
    backbone = dynamize(narrow(MODELS.build({**TSM, 'pretrained': path})))
    backbone.init_weights()
    with pytest.raises(RuntimeError, match='checkpoint of another network'):
        load_checkpoint(backbone, path)
