# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Dynamic layers of all kinds, and what they should compute, written down naively."""

import itertools
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vared2_mmaction.ops import (
    ChannelOptions,
    DynamicConv2d,
    DynamicConv3d,
    Modulation,
    SoftModulationGate,
    TemporalOptions,
)


@dataclass
class Case:
    """A layer and its input: in_channels, out_channels, kernel and more as in nn.Conv."""

    name: str
    conv: dict
    frames: int = 6
    rank: int = 3
    channel: int = 3
    temporal: int = 3
    kinds: tuple[str, str] = ('affine', 'affine')
    normalised: bool = True
    multiple: int = 1
    extra: dict = field(default_factory=dict)


CASES = [
    Case('plain', {'in_channels': 4, 'out_channels': 8, 'kernel_size': 3, 'padding': 1}, frames=8),
    Case('odd', {'in_channels': 3, 'out_channels': 7, 'kernel_size': 3, 'bias': False}, frames=9),
    Case('stride', {'in_channels': 2, 'out_channels': 6, 'kernel_size': 3, 'stride': 2}, frames=11),
    Case(
        'dilation',
        {
            'in_channels': 2,
            'out_channels': 5,
            'kernel_size': 3,
            'dilation': 2,
            'padding': (2, 1, 3),
        },
        frames=7,
    ),
    Case('one frame', {'in_channels': 3, 'out_channels': 4, 'kernel_size': 1}, frames=1),
    Case('one channel', {'in_channels': 3, 'out_channels': 1, 'kernel_size': 1}, frames=4),
    Case('vectors', {'in_channels': 3, 'out_channels': 27, 'kernel_size': 1}, multiple=4),
    Case(
        'depthwise',
        {'in_channels': 10, 'out_channels': 10, 'kernel_size': 3, 'padding': 1, 'groups': 10},
        frames=5,
        kinds=('depthwise', 'depthwise'),
    ),
    Case(
        'groups',
        {'in_channels': 6, 'out_channels': 9, 'kernel_size': (1, 3, 3), 'groups': 3},
        kinds=('depthwise', 'affine'),
    ),
    Case(
        'same padding',
        {'in_channels': 2, 'out_channels': 4, 'kernel_size': (2, 3, 3), 'padding': 'same'},
    ),
    Case(
        'circular',
        {
            'in_channels': 2,
            'out_channels': 4,
            'kernel_size': 3,
            'padding': 1,
            'padding_mode': 'circular',
        },
    ),
    Case('four options', {'in_channels': 2, 'out_channels': 16, 'kernel_size': 1}, 16, 3, 4, 4),
    Case('channel only', {'in_channels': 2, 'out_channels': 6, 'kernel_size': 3}, temporal=1),
    Case('temporal only', {'in_channels': 2, 'out_channels': 6, 'kernel_size': 3}, channel=1),
    Case(
        'not normalised',
        {'in_channels': 2, 'out_channels': 6, 'kernel_size': 3, 'padding': 1},
        normalised=False,
    ),
    Case('2d', {'in_channels': 4, 'out_channels': 7, 'kernel_size': 3, 'stride': 2}, rank=2),
    Case(
        '2d groups',
        {'in_channels': 4, 'out_channels': 6, 'kernel_size': 3, 'groups': 2},
        frames=5,
        rank=2,
        kinds=('depthwise', 'depthwise'),
    ),
]


def build(case: Case, dtype: torch.dtype = torch.float64) -> DynamicConv2d | DynamicConv3d:
    """A dynamic layer with random weights everywhere, in evaluation mode."""
    stock, dynamic = (nn.Conv3d, DynamicConv3d) if case.rank == 3 else (nn.Conv2d, DynamicConv2d)
    conv = stock(**case.conv)
    channel = ChannelOptions(conv.out_channels, case.channel, case.kinds[0], case.multiple)
    temporal = TemporalOptions(conv.out_channels, case.temporal, case.kinds[1])
    gate = SoftModulationGate(conv.in_channels, len(channel.kept), case.temporal, 5)
    layer = dynamic.convert_from(conv, gate, channel, temporal, case.normalised, case.name)
    if isinstance(layer, DynamicConv2d):
        layer.num_segments = case.frames
    for parameter in (*channel.parameters(), *temporal.parameters()):
        nn.init.normal_(parameter)
    return layer.to(dtype).eval()


def clips(case: Case, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random input, (N, C, T, H, W)."""
    return torch.randn(n, case.conv['in_channels'], case.frames, 7, 8, dtype=dtype)


def every_modulation(layer: DynamicConv2d | DynamicConv3d, x: Tensor) -> list[Modulation]:
    """For each policy that a layer has, weights of which some cheaper options are off."""
    sizes = (len(layer.channel_options.kept), len(layer._frame_options(x.shape[2])))
    found = []
    for dearest in itertools.product(*(range(size) for size in sizes)):
        weights = []
        for size, first in zip(sizes, dearest, strict=True):
            v = torch.rand(len(x), size, dtype=x.dtype) * (torch.rand(len(x), size) < 0.6) * 0.9
            v[:, :first] = 0
            v[:, first] = 0.1 + 0.8 * torch.rand(len(x), dtype=x.dtype)
            weights.append(v)
        found.append(Modulation(*weights))
    return found


def dense(layer: DynamicConv2d | DynamicConv3d, x: Tensor, modulation: Modulation) -> Tensor:
    """Compute everything with the stock convolution, then blend as the method says."""
    stock = nn.Conv3d if isinstance(layer, nn.Conv3d) else nn.Conv2d
    if stock is nn.Conv3d:
        full = nn.Conv3d.forward.__get__(layer)(x)
    else:
        frames = nn.Conv2d.forward.__get__(layer)(x.transpose(1, 2).flatten(0, 1))
        full = frames.view(len(x), x.shape[2], *frames.shape[1:]).transpose(1, 2)
    weights = [v / v.sum(1, keepdim=True) if layer.normalised else v for v in modulation]
    channels = full.shape[1]
    mixed = torch.zeros_like(full)
    for i, k in enumerate(layer.channel_options.kept):
        option = full.clone()
        for c in range(k, channels):
            operation = layer.channel_options.cheap[i - 1]
            option[:, c, None] = rebuild(operation, full[:, c % k, None], slice(c - k, c - k + 1))
        mixed += weights[0][:, i].view(-1, 1, 1, 1, 1) * option
    y = torch.zeros_like(full)
    for j in range(weights[1].shape[1]):
        option = mixed.clone()
        for t in range(full.shape[2]):
            if offset := t % 2**j:
                maps = slice((offset - 1) * channels, offset * channels)
                source = mixed[:, :, t - offset, None]
                option[:, :, t, None] = rebuild(layer.temporal_options.cheap[j - 1], source, maps)
        y += weights[1][:, j].view(-1, 1, 1, 1, 1) * option
    return y


def rebuild(operation: nn.Module, x: Tensor, maps: slice) -> Tensor:
    """A cheap operation on its own."""
    weight, bias = operation.weight[maps], operation.bias[maps]
    if operation.macs_per_element == 1:
        return x * weight.view(1, -1, 1, 1, 1) + bias.view(1, -1, 1, 1, 1)
    return nn.functional.conv3d(x, weight[:, :, None], bias, padding=(0, 1, 1), groups=len(weight))
