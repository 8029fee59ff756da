# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Layers with normalisation folded, and what executes them."""

import dataclasses

import pytest
import torch
from torch import nn

from vared2_mmaction.deploy.fold import fold_norm, fold_norm_of_gate
from vared2_mmaction.executors import ExecutedConv
from vared2_mmaction.executors.cpu.library import library
from vared2_mmaction.ops import Modulation

from ..ops.layers import Case, build

IN_2D = [
    Case('spatial', {'kernel_size': (1, 3, 3), 'padding': (0, 1, 1)}, 7),
    Case('spatial, strided', {'kernel_size': (1, 3, 3), 'stride': (2, 2, 2)}, 9),
    Case('temporal', {'kernel_size': (3, 1, 1), 'padding': (1, 0, 0)}, 8),
    Case('temporal, strided', {'kernel_size': (3, 1, 1), 'stride': (2, 1, 1)}, 9),
    Case('pointwise', {'kernel_size': 1, 'bias': False}, 6),
    Case('pointwise, strided', {'kernel_size': 1, 'stride': 2}, 6),
    Case('dilated', {'kernel_size': (1, 3, 3), 'dilation': (1, 2, 1)}, 5),
    Case('odd', {'kernel_size': 1, 'out_channels': 23}, 7, 3, 4, 4),
    Case('one frame', {'kernel_size': 1}, 1),
    Case('channel only', {'kernel_size': 1}, 6, temporal=1),
    Case('vectors', {'kernel_size': 1, 'out_channels': 27}, 6, multiple=4),
    Case('frames', {'kernel_size': 3, 'padding': 1}, 6, rank=2),
    Case('frames, strided', {'kernel_size': 3, 'stride': 2}, 5, rank=2),
]
# Few input channels are convolved by oneDNN, more of them tile by tile where that takes less time.
FEW, MANY = 6, 20
TILED = [
    *IN_2D,
    Case('wide', {'kernel_size': (1, 3, 3), 'out_channels': 150, 'padding': (0, 1, 1)}, 6),
    Case('wide, temporal', {'kernel_size': (3, 1, 1), 'out_channels': 150}, 6),
    Case('padded, strided', {'kernel_size': 3, 'stride': 2, 'padding': 1}, 9),
    Case('padded frames, strided', {'kernel_size': 5, 'stride': 3, 'padding': 2}, 5, rank=2),
    Case('volume', {'kernel_size': 3, 'padding': 1}, 6),
    Case('volume, strided', {'kernel_size': 3, 'stride': 2, 'dilation': (1, 2, 3)}, 9),
    Case('volume, far', {'kernel_size': (1, 5, 5), 'padding': (2, 9, 9), 'dilation': 3}, 4),
]


def _with_inputs(case, inputs, name):
    conv = {'in_channels': inputs, 'out_channels': 10, **case.conv}
    return dataclasses.replace(case, name=name, conv=conv)


IN_2D = [_with_inputs(case, FEW, case.name) for case in IN_2D]
TILED = [_with_inputs(case, MANY, f'{case.name}, tiled') for case in TILED]
LAYERS = [*IN_2D, *TILED]


class Given(nn.Module):
    """A gate whose weights, of all options, are given."""

    def __init__(self, macs):
        super().__init__()
        self.cost, self.weights = macs, None

    def macs(self):
        return self.cost

    def forward(self, clips, temporal_options):
        channel, temporal = self.weights
        return Modulation(channel, temporal[:, :temporal_options])


def folded(case, change=None):
    """A layer whose normalisation is folded, if that can be."""
    layer = build(case, torch.float32)
    channels = layer.out_channels
    norm = (nn.BatchNorm3d if case.rank == 3 else nn.BatchNorm2d)(channels).eval()
    nn.init.uniform_(norm.running_mean, -1, 1)
    nn.init.uniform_(norm.weight, 0.5, 2)
    if change is not None:
        change(norm)
    fold_norm(layer, norm)
    nn.init.normal_(layer.gate.fc2.weight, std=2)
    fold_norm_of_gate(layer.gate)
    return layer.requires_grad_(False)


def executed(layer, executor='cpu', relu=False):
    """What takes the place of a layer, which stays as it is."""
    conv = ExecutedConv(layer)
    if relu:
        conv.take_relu()
    conv.execute_by(executor)
    conv.decisions = ()
    return conv


def clips(case, number, height=7):
    x = torch.randn(number, case.conv['in_channels'], case.frames, height, 8)
    return x.contiguous(memory_format=torch.channels_last_3d)


def as_input(layer, x):
    """Clips as the layer's input."""
    return layer.from_clips(x)


def skip_without_tiles(case):
    if case.name.startswith(('volume', 'padded, ')) and not library().can_tile(MANY):
        pytest.skip('this processor has no products of matrices for tiles')


def one_hot(layer, channel, temporal, number):
    """Weights of one option of each dimension, of all options."""
    pairs = zip((channel, temporal), layer.num_options, strict=True)
    return Modulation(*(torch.eye(size)[[i] * number] for i, size in pairs))
