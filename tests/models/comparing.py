# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Networks whose gates decide something, and how far outputs differ."""

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from vared2_mmaction.models import dynamic_layers

from .backbones import STOCK, listed


def clips(name, dtype=torch.float32):
    return torch.randn(STOCK[name][1], dtype=dtype)


def relative(found, expected):
    pairs = zip(listed(found), listed(expected), strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def randomise_norms(model):
    """Let every BatchNorm change its input."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)  # stock ones may begin with zero


def randomise(net):
    """Give every clip and layer some answer of its own, and cheap operations some weight."""
    for layer in dynamic_layers(net).values():
        torch.nn.init.normal_(layer.gate.fc2.weight, std=2)
        torch.nn.init.normal_(layer.gate.fc2.bias, std=1)
        for operation in (*layer.channel_options.cheap, *layer.temporal_options.cheap):
            torch.nn.init.normal_(operation.weight, std=0.3)
