# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Small stock backbones and their dynamic twins."""

from typing import Any

import torch
from mmaction.registry import MODELS
from mmaction.utils import register_all_modules
from mmengine.logging import MMLogger
from torch import nn

from vared2_mmaction import dynamize

register_all_modules()

# Blocks with and without downsampling, and no more of them than that.
_DEEP = {'depth': 50, 'pretrained': None, 'base_channels': 8, 'stage_blocks': (2, 1, 1, 1)}
_FLAT = {'num_stages': 2, 'strides': (1, 2), 'dilations': (1, 1), 'out_indices': (1,)}
_PATHWAY = {**_DEEP, 'type': 'resnet3d', 'conv1_stride_t': 1, 'pool1_stride_t': 1}

# Name: (config of the stock backbone, shape of its input).
STOCK: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    'ResNet': ({'depth': 18, **_FLAT}, (8, 3, 32, 32)),
    'ResNet3d': (_DEEP, (2, 3, 16, 32, 32)),
    'ResNet2Plus1d': (
        {
            'depth': 18,
            'pretrained': None,
            'pretrained2d': False,
            'base_channels': 8,
            'stage_blocks': (2, 1, 1, 1),
            'conv_cfg': {'type': 'Conv2plus1d'},
            'temporal_strides': (1, 2, 2, 2),
            'zero_init_residual': False,
        },
        (2, 3, 8, 40, 40),
    ),
    'X3D': ({'gamma_w': 1, 'gamma_b': 2.25, 'gamma_d': 0.4}, (2, 3, 5, 32, 32)),
    'ResNet3dSlowOnly': ({**_DEEP, 'lateral': False}, (2, 3, 4, 32, 32)),
    'ResNet3dSlowFast': (
        {
            'pretrained': None,
            'resample_rate': 4,
            'speed_ratio': 4,
            'channel_ratio': 4,
            'slow_pathway': {
                **_PATHWAY,
                'lateral': True,
                'conv1_kernel': (1, 7, 7),
                'inflate': (0, 0, 1, 1),
            },
            'fast_pathway': {
                **_PATHWAY,
                'lateral': False,
                'conv1_kernel': (5, 7, 7),
                'base_channels': 2,
            },
        },
        (2, 3, 16, 32, 32),
    ),
    'ResNet3dCSN': ({**_DEEP, 'pretrained2d': False}, (2, 3, 8, 32, 32)),
    'ResNetTSM': (
        {'depth': 18, 'pretrained': None, 'pretrained2d': False, 'num_segments': 4},
        (8, 3, 32, 32),
    ),
    'TANet': (
        {'depth': 50, 'num_segments': 4, **_FLAT},
        (8, 3, 32, 32),
    ),
    'C3D': ({'out_dim': 512}, (2, 3, 16, 16, 16)),
}
NARROWED = ('ResNetTSM', 'TANet', 'C3D')
"""Backbones whose config cannot say that they have few channels."""
_TWO = {
    **{'num_stages': 2, 'stage_blocks': (2, 1), 'dilations': (1, 1), 'out_indices': (1,)},
    **{'spatial_strides': (1, 2), 'temporal_strides': (1, 1)},
}
_TWO_PATHWAYS = {
    key: {**STOCK['ResNet3dSlowFast'][0][key], **_TWO, 'inflate': (0, 1)}
    for key in ('slow_pathway', 'fast_pathway')
}
SHORT: dict[str, dict[str, Any]] = {
    **{name: {} for name in STOCK},
    **{name: _TWO for name in ('ResNet3d', 'ResNet3dCSN')},
    'ResNet2Plus1d': {**_TWO, 'temporal_strides': (1, 2)},
    'X3D': {'num_stages': 2, 'spatial_strides': (2, 2), 'gamma_d': 1},
    'ResNet3dSlowOnly': {**_TWO, 'inflate': (0, 1)},
    'ResNet3dSlowFast': _TWO_PATHWAYS,
}
"""Arguments that leave two stages, with blocks of all kinds, wherever there are four."""
NAMED = ('ResNet', 'ResNet3d', 'ResNet2Plus1d', 'X3D')


def stock(name: str, **kwargs: Any) -> nn.Module:
    """A stock backbone, initialised."""
    config, _ = STOCK[name]
    with torch.device('meta' if name in ('ResNetTSM', 'C3D') else 'cpu'):
        backbone = MODELS.build({'type': f'mmaction.{name}', **config, **kwargs})
    if name in NARROWED:
        narrow(backbone)
    MMLogger.get_current_instance().setLevel('ERROR')
    backbone.init_weights()
    return backbone


def narrow(net: nn.Module) -> nn.Module:
    """The network with an eighth of the channels wherever there are 64 or more, not initialised."""
    for module in net.modules():
        for key in ('in_channels', 'out_channels', 'num_features', 'in_features', 'out_features'):
            if hasattr(module, key):
                setattr(module, key, _narrowed(getattr(module, key)))
        for key, p in module.named_parameters(recurse=False):
            setattr(module, key, nn.Parameter(torch.empty([_narrowed(n) for n in p.shape])))
        for key, b in module.named_buffers(recurse=False):
            setattr(module, key, torch.empty([_narrowed(n) for n in b.shape], dtype=b.dtype))
        if hasattr(module, 'reset_parameters'):
            module.reset_parameters()
    return net


def _narrowed(number: int) -> int:
    return number // 8 if number >= 64 else number


def dynamic(name: str, options: dict[str, Any] | None = None, **kwargs: Any) -> nn.Module:
    """The dynamic twin: a named class where there is one, else through dynamize."""
    config, _ = STOCK[name]
    segments = {'num_segments': 4} if name == 'ResNet' else {}
    if name not in NAMED:
        return dynamize(stock(name, **kwargs), **(options or {}))
    return MODELS.build(
        {'type': f'VARED2{name}', 'dynamic': options or {}, **config, **segments, **kwargs}
    )


def listed(features: Any) -> tuple:
    """Features of one or of several pathways, as a tuple."""
    return features if isinstance(features, tuple) else (features,)
