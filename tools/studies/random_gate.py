# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""A policy that is drawn, not learned: what a learned one has to beat at the same compute.

Draws are a pure function of the clip and of a seed that every layer has, in training and in
inference: they do not depend on the batch a clip is in, on its place there, or on earlier calls.
The clip is what the backbone was given, bit for bit; a layer's own input would not do, because
features differ in their last bit between batch sizes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from mmaction.registry import MODELS
from torch import Tensor, nn

from vared2_mmaction.errors import Expected, check
from vared2_mmaction.models.backbones import VARED2ResNet2Plus1d
from vared2_mmaction.models.dynamize import DynamicFeatures
from vared2_mmaction.ops import Modulation

_keys: ContextVar[Tensor | None] = ContextVar('vared2_clip_keys', default=None)


def option_probabilities(number: int, thrift: float) -> list[float]:
    """Probabilities of options, dearest first.

    Option i of n has a probability proportional to ``(1 - thrift)^(n - 1 - i) thrift^i``: 0 always
    takes the dearest one, 1 the cheapest, 1/2 each as often. Expected compute falls with thrift.

    Args:
        number: Number of options n.
        thrift: From 0 to 1.
    """
    parts = [(1 - thrift) ** (number - 1 - i) * thrift**i for i in range(number)]
    return [part / sum(parts) for part in parts]


@contextmanager
def keyed_by(clips: Tensor) -> Iterator[None]:
    """Let random gates draw for these clips, (N, ...), while the context is open."""
    token = _keys.set(clip_keys(clips))
    try:
        yield
    finally:
        _keys.reset(token)


def clip_keys(clips: Tensor) -> Tensor:
    """A 64-bit hash of the content of each clip.

    Args:
        clips: (N, ...) in a floating-point type, of which float64 is rounded to float32.

    Returns:
        (N,) in int64.
    """
    bits = clips.detach().flatten(1).float().view(torch.int32).long()
    factors = _mix(torch.arange(bits.shape[1], device=bits.device)) | 1
    return _mix((bits * factors).sum(1))  # wraps around: the same in any order of summation


@MODELS.register_module()
class RandomPolicyGate(nn.Module):
    """A gate that draws one option a dimension for every clip, with weight 1.

    Draws are independent between clips, layers and dimensions. Nothing is computed of the layer's
    input, so that the gate counts no operations.

    Args:
        in_channels: Channels of the layer's input; not needed.
        channel_options: Number of channel options.
        temporal_options: Largest number of temporal options; a short clip has fewer.
        thrift: See :func:`option_probabilities`.
    """

    seed: Tensor
    """Of this layer, drawn as initial weights are, and kept in checkpoints."""

    def __init__(
        self, in_channels: int, channel_options: int, temporal_options: int, thrift: float
    ) -> None:
        super().__init__()
        expected = Expected(float, 'a number from 0 to 1', lambda x: 0 <= x <= 1)
        check('dynamic.gate.thrift', thrift, expected)
        self.channel_options = channel_options
        self.thrift = thrift
        self.register_buffer('seed', torch.randint(2**62, (1,)))

    def macs(self) -> int:
        """Multiply-adds of the gate for one clip: none."""
        return 0

    def forward(self, x: Tensor, temporal_options: int) -> Modulation:
        """Draw the options of every clip.

        Args:
            x: Input of the layer, (N, C, T, H, W).
            temporal_options: Number of temporal options that the clip's length allows.

        Raises:
            RuntimeError: If it is not known which clips these are.
        """
        keys = _keys.get()
        if keys is None or len(keys) != len(x):
            found = 'none' if keys is None else f'those of {len(keys)}'
            raise RuntimeError(
                f'RandomPolicyGate: expected the keys of {len(x)} clips, found {found}; it needs '
                "the backbone RandomPolicyResNet2Plus1d, or a forward within 'keyed_by(clips)'"
            )
        options = (self.channel_options, temporal_options)
        return Modulation(*(self._draw(keys, i, n).to(x.dtype) for i, n in enumerate(options)))

    def _draw(self, keys: Tensor, dimension: int, number: int) -> Tensor:
        """One-hot options, (N, number)."""
        uniform = (_mix(keys ^ _mix(self.seed + dimension)) >> 11 & (1 << 53) - 1).double() / 2**53
        bounds = uniform.new_tensor(option_probabilities(number, self.thrift)).cumsum(0)
        return F.one_hot((uniform[:, None] >= bounds[:-1]).sum(1), number)


@MODELS.register_module()
class RandomPolicyResNet2Plus1d(VARED2ResNet2Plus1d):
    """``VARED2ResNet2Plus1d`` whose ``dynamic.gate`` may be a :class:`RandomPolicyGate`."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> DynamicFeatures:
        """Extract features; arguments are those of the stock backbone."""
        with keyed_by(x):
            return super().forward(x, *args, **kwargs)


def _mix(x: Tensor) -> Tensor:
    """Scramble 64-bit integers, each by itself (the finaliser of SplitMix64)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ _shifted(x, shift)) * factor
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, shift: int) -> Tensor:
    """Shift to the right, zeros coming in."""
    return x >> shift & (1 << 64 - shift) - 1
