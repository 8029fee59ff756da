# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Dynamic layers of all kinds, with inputs and weights for them."""

import itertools
from dataclasses import dataclass, field
from typing import Any

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

DynamicConv = DynamicConv2d | DynamicConv3d


@dataclass(frozen=True)
class Case:
    """A layer and its input."""

    name: str
    conv: dict[str, Any] = field(hash=False)
    """Arguments of ``nn.Conv2d`` or ``nn.Conv3d``."""
    frames: int = 6
    rank: int = 3
    channel: int = 3
    temporal: int = 3
    multiple: int = 1
    in_use: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """Channel and temporal options in use; None for all."""


def _conv(in_channels: int, out_channels: int, kernel_size: Any, **more: Any) -> dict[str, Any]:
    sizes = {'in_channels': in_channels, 'out_channels': out_channels}
    return {**sizes, 'kernel_size': kernel_size, **more}


CASES = [
    Case('plain', _conv(4, 8, 3, padding=1), frames=8),
    Case('odd', _conv(3, 7, 3, bias=False), frames=9),
    Case('stride', _conv(2, 6, 3, stride=2), frames=11),
    Case('dilation', _conv(2, 5, 3, dilation=2, padding=(2, 1, 3)), frames=7),
    Case('spatial', _conv(4, 9, (1, 3, 3), padding=(0, 1, 1), stride=(1, 2, 2)), frames=5),
    Case('temporal', _conv(16, 12, (3, 1, 1), padding=(1, 0, 0), stride=(2, 1, 1)), frames=9),
    Case('one frame', _conv(3, 4, 1), frames=1),
    Case('one channel', _conv(3, 1, 1), frames=4),
    Case('vectors', _conv(3, 27, 1), multiple=4),
    Case('depthwise', _conv(10, 10, 3, padding=1, groups=10), frames=5),
    Case('groups', _conv(6, 9, (1, 3, 3), groups=3)),
    Case('same padding', _conv(2, 4, (2, 3, 3), padding='same')),
    Case('circular', _conv(2, 4, 3, padding=1, padding_mode='circular')),
    Case('four options', _conv(2, 16, 1), frames=9, channel=4, temporal=4),
    Case('channel only', _conv(2, 6, 3), temporal=1),
    Case('temporal only', _conv(2, 6, 3), channel=1),
    Case('2d', _conv(4, 7, 3, stride=2), rank=2),
    Case('2d groups', _conv(4, 6, 3, groups=2), frames=5, rank=2),
    Case('in use: cheaper ones', _conv(4, 8, 3, padding=1), frames=8, in_use=((1, 2), (1, 2))),
    Case('in use: outer ones', _conv(4, 9, 1), in_use=((0, 2), (0, 2))),
    Case('in use: one each', _conv(4, 8, 3, padding=1), in_use=((1,), (2,))),
    Case('in use: one frame', _conv(3, 4, 1), frames=1, in_use=((0, 1), (2,))),
    Case('in use: 2d', _conv(4, 8, 1), rank=2, in_use=((1,), (0, 2))),
    Case('in use: one channel option', _conv(2, 6, 1), in_use=((1,), (1, 2))),
]
NAMES = [case.name for case in CASES]


def case_of(name: str) -> Case:
    """The case of a name."""
    return CASES[NAMES.index(name)]


def build(case: Case, dtype: torch.dtype = torch.float64) -> DynamicConv:
    """A dynamic layer with random weights everywhere, in evaluation mode."""
    stock, dynamic = (nn.Conv3d, DynamicConv3d) if case.rank == 3 else (nn.Conv2d, DynamicConv2d)
    conv = stock(**case.conv)
    channel = ChannelOptions(conv.out_channels, case.channel, case.multiple)
    temporal = TemporalOptions(conv.out_channels, case.temporal)
    gate = SoftModulationGate(conv.in_channels, len(channel.kept), case.temporal, 5)
    layer: Any = dynamic.convert_from(conv, gate, channel, temporal, case.name)
    if case.rank == 2:
        layer.num_segments = case.frames
    for parameter in (*channel.parameters(), *temporal.parameters()):
        nn.init.normal_(parameter)
    if case.in_use is not None:
        channel.use(case.in_use[0])
        temporal.use(case.in_use[1])
    return layer.to(dtype).eval()


def clips(case: Case, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random input, (N, C, T, H, W)."""
    return torch.randn(n, case.conv['in_channels'], case.frames, 5, 6, dtype=dtype)


def as_input(case: Case, x: Tensor) -> Tensor:
    """Clips, (N, C, T, H, W), as the layer takes them."""
    return x if case.rank == 3 else x.transpose(1, 2).flatten(0, 1)


def as_output(case: Case, y: Tensor) -> Tensor:
    """What the layer returns as clips, (N, C, T, H, W)."""
    return y if case.rank == 3 else y.unflatten(0, (-1, case.frames)).transpose(1, 2)


def every_modulation(layer: DynamicConv, x: Tensor) -> list[Modulation]:
    """For each policy that is in use, weights of which some cheaper options are off."""
    sizes = [len(which) for which in layer.options_of(x.shape[2])[0]]
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


def mixed_modulation(layer: DynamicConv, x: Tensor) -> Modulation:
    """Weights of which each clip has a policy of its own, as far as there are policies."""
    choices = every_modulation(layer, x)
    pairs = ([choices[n % len(choices)][d][n] for n in range(len(x))] for d in range(2))
    return Modulation(*(torch.stack(rows) for rows in pairs))


def vary(layer: DynamicConv) -> None:
    """Let the gate answer each clip differently, with options off for some."""
    nn.init.normal_(layer.gate.fc2.weight, std=2)
    nn.init.normal_(layer.gate.fc2.bias, std=1)
