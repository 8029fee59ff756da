# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Which convolutions of a backbone become dynamic, and how."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from mmaction.registry import MODELS
from mmcv.cnn.bricks import wrappers
from torch import nn
from torch.nn.utils import parametrize

from ..errors import COUNT, FLAG, OPTIONS, Expected, check, check_arguments, given_options
from ..executors.cpu.library import library
from ..executors.mixing import mix_anywhere, mix_on_gpu
from ..ops import (
    ChannelOptions,
    ComputationBudgetLoss,
    DynamicConv2d,
    DynamicConv3d,
    SoftModulationGate,
    TemporalOptions,
)
from ..ops.options import MAX_OPTIONS
from ..watched import is_watched, runs

MODELS.register_module(module=SoftModulationGate)
MODELS.register_module(module=ComputationBudgetLoss)

# mmcv's wrappers differ from the stock layers for empty tensors in old PyTorch releases only.
CONVOLUTIONS: dict[type[nn.Module], type[DynamicConv2d] | type[DynamicConv3d]] = {
    nn.Conv2d: DynamicConv2d,
    nn.Conv3d: DynamicConv3d,
    wrappers.Conv2d: DynamicConv2d,
    wrappers.Conv3d: DynamicConv3d,
}
_RESIDUAL_STAGE = re.compile(r'(^|\.)layer\d+\.')
_BESIDE_THE_STAGES = re.compile(r'downsample|lateral|se_module|non_local')


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


_LAYERS = "a regular expression for names of convolutions, such as 'layer3|layer4',"
_NUMBER = Expected(
    int,
    f'the number of options, a whole number from 1 (no reduction) to {MAX_OPTIONS}',
    lambda n: 1 <= n <= MAX_OPTIONS,
)
_EXPECTED = {
    'dynamic.channel': _NUMBER,
    'dynamic.temporal': _NUMBER,
    'dynamic.layers': Expected(str, _LAYERS, _is_pattern, or_none=True),
    'dynamic.channel_multiple': COUNT,
    'num_segments': COUNT._replace(or_none=True),  # also an argument of a 2-D backbone
    'dynamic.compiled': FLAG,
}


@dataclass
class DynamicOptions:
    """The ``dynamic`` argument of a backbone.

    Args:
        channel: Number of channel options, 1 to 4; 1 gives a temporal-only network.
        temporal: Number of temporal options, 1 to 4; 1 gives a channel-only network.
        layers: Regular expression searched in the names of the backbone's convolutions; those it
            is found in become dynamic. None takes the convolutions of all residual stages, without
            downsampling, lateral, squeeze-and-excitation and non-local branches; in a backbone
            without residual stages, all but the first.
        gate: Config of the gate of each layer, by default a ``SoftModulationGate``.
        channel_multiple: What the numbers of computed channels are rounded down to a multiple of,
            where they are at least twice as many. Processors compute channels in vectors: half of
            144 channels takes the time of 80, but 16 makes it 64.
        num_segments: For a 2-D backbone, the number of frames of a clip (the segments of TSN).
            None takes the backbone's own ``num_segments``.
        compiled: Whether to mix options by compiled code in training, with float32 on a CPU; see
            :mod:`vared2_mmaction.executors.mixing`. On a GPU kernels do that in any case. What is
            computed is the same.
    """

    channel: int = 3
    temporal: int = 3
    layers: str | None = None
    gate: dict = field(default_factory=dict)
    channel_multiple: int = 1
    num_segments: int | None = None
    compiled: bool = False

    @classmethod
    def parse(cls, options: Any) -> 'DynamicOptions':
        """Check options given by a user; None is none.

        Raises:
            ValueError: Naming the key that is wrong, and what was expected.
        """
        options = given_options('dynamic', options)
        check_arguments('dynamic', options, cls)
        self = cls(**options)
        for key, expected in _EXPECTED.items():
            check(key, getattr(self, key.removeprefix('dynamic.')), expected)
        if self.channel == self.temporal == 1:
            raise ValueError('dynamic.channel and dynamic.temporal are both 1: nothing is dynamic')
        self._check_gate()
        return self

    def _check_gate(self) -> None:
        check('dynamic.gate', self.gate, OPTIONS)
        kind: Any = self.gate.get('type', SoftModulationGate)
        if isinstance(kind, str):
            kind = MODELS.get(kind)
        if not callable(kind):
            raise ValueError(
                f'dynamic.gate.type={self.gate["type"]!r}: expected a registered gate; is '
                'custom_imports missing a module?'
            )
        check_arguments(
            'dynamic.gate', self.gate, kind, ('in_channels', 'channel_options', 'temporal_options')
        )
        if kind is SoftModulationGate:  # it knows its options; on meta, no numbers are drawn
            options = {key: value for key, value in self.gate.items() if key != 'type'}
            with torch.device('meta'):
                SoftModulationGate(1, self.channel, self.temporal, **options)


def is_dynamic(module: Any) -> bool:
    """Whether a module is a dynamic convolution, whatever executes it."""
    return isinstance(module, DynamicConv2d | DynamicConv3d) or (
        getattr(module, 'is_dynamic', False) is True
    )


def make_layers_dynamic(backbone: nn.Module, options: DynamicOptions) -> tuple[str, ...]:
    """Replace convolutions of a backbone in place.

    Returns:
        Names of the dynamic layers, in the order of registration.

    Raises:
        ValueError: If there is nothing to make dynamic, or a chosen convolution is not a plain one.
        RuntimeError: If compiled code is asked for and cannot be made.
    """
    convolutions = [
        name for name, module in backbone.named_modules() if isinstance(module, tuple(CONVOLUTIONS))
    ]
    chosen = list(_choose(convolutions, options.layers))
    if not chosen:
        wanted = 'to make dynamic' if options.layers is None else f'matches {options.layers!r}'
        raise ValueError(
            f'dynamic.layers: no convolution of {type(backbone).__name__} {wanted}; its '
            f'convolutions are {convolutions}'
        )
    for name in chosen:
        _check_convolution(name, backbone.get_submodule(name))
    if options.compiled:  # what is missing is said before hours are spent
        library()
    made = [_convert(backbone, name, options) for name in chosen]  # before one is put in place
    for name, layer in zip(chosen, made, strict=True):
        parent, _, attribute = name.rpartition('.')
        setattr(backbone.get_submodule(parent), attribute, layer)
    return tuple(chosen)


def _choose(convolutions: list[str], pattern: str | None) -> Iterator[str]:
    if pattern is not None:
        yield from (name for name in convolutions if re.search(pattern, name))
        return
    candidates = [name for name in convolutions if _RESIDUAL_STAGE.search(name)]
    for name in candidates or convolutions[1:]:
        if not _BESIDE_THE_STAGES.search(name):
            yield name


def _check_convolution(name: str, conv: nn.Module) -> None:
    """Refuse what a dynamic convolution would not do or keep."""
    kind = type(conv).__name__
    if not runs(conv, *CONVOLUTIONS):
        found = f'{kind} has a forward of its own'
    elif parametrize.is_parametrized(conv):
        found = f'{kind} is parametrised; parametrise the dynamic network instead'
    elif is_watched(conv):
        found = f'{kind} has hooks; register them on the dynamic network instead'
    else:
        return
    raise ValueError(
        f'dynamic.layers: {name} cannot be made dynamic: {found}. Expected a plain convolution; '
        'a regular expression may leave it out'
    )


def _convert(backbone: nn.Module, name: str, options: DynamicOptions) -> nn.Module:
    conv = backbone.get_submodule(name)
    assert isinstance(conv, nn.Conv2d | nn.Conv3d)
    channel = ChannelOptions(conv.out_channels, options.channel, options.channel_multiple)
    temporal = TemporalOptions(conv.out_channels, options.temporal)
    gate = MODELS.build(
        {
            'type': 'SoftModulationGate',
            **options.gate,
            'in_channels': conv.in_channels,
            'channel_options': len(channel.kept),
            'temporal_options': temporal.num_options,
        }
    )
    dynamic = next(made for kind, made in CONVOLUTIONS.items() if isinstance(conv, kind))
    layer = dynamic.convert_from(conv, gate, channel, temporal, name)
    layer.mix = mix_anywhere if options.compiled else mix_on_gpu
    if isinstance(layer, DynamicConv2d):
        layer.num_segments = _segments(backbone, name, options)
    return layer.to(conv.weight.device)


def _segments(backbone: nn.Module, name: str, options: DynamicOptions) -> int:
    """Number of frames of a clip that a 2-D layer sees."""
    segments = clip_length(backbone, options)
    if getattr(backbone, 'temporal_pool', False) and not name.startswith('layer1.'):
        return segments // 2  # TSM pools time before its second stage
    return segments


def clip_length(backbone: nn.Module, options: DynamicOptions) -> int:
    """Number of frames of a clip at the input of a 2-D backbone.

    Raises:
        ValueError: If neither the options nor the backbone know it.
    """
    segments = options.num_segments or getattr(backbone, 'num_segments', None)
    if segments is None:
        raise ValueError(
            f'num_segments is missing: {type(backbone).__name__} is a 2-D backbone, whose time '
            'axis are the segments; give the number of frames of a clip'
        )
    return segments
