# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The dynamic backbones: stock namesake's arguments and ``dynamic=dict(...)``."""

from collections.abc import Mapping
from typing import Any

from mmaction.models.backbones import X3D, ResNet, ResNet2Plus1d, ResNet3d
from mmaction.registry import MODELS

from ..errors import given_options
from .dynamize import DynamicBackbone


@MODELS.register_module()
class VARED2ResNet(DynamicBackbone, ResNet):
    """TSN's ResNet; the segments of a clip are its time axis.

    Args:
        num_segments: Number of segments T; the input has (N T, C, H, W).
        dynamic: Options of :class:`~vared2_mmaction.models.layers.DynamicOptions`.
        **kwargs: Arguments of ``ResNet``.
    """

    def __init__(
        self, *args: Any, num_segments: int, dynamic: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        options = {'num_segments': num_segments, **given_options('dynamic', dynamic)}
        super().__init__(*args, dynamic=options, **kwargs)
        self.num_segments = num_segments


@MODELS.register_module()
class VARED2ResNet3d(DynamicBackbone, ResNet3d):
    """I3D's ResNet3d with ``dynamic``."""


@MODELS.register_module()
class VARED2ResNet2Plus1d(DynamicBackbone, ResNet2Plus1d):
    """R(2+1)D with ``dynamic``; each block's spatial and temporal convolution has its own gate."""


@MODELS.register_module()
class VARED2X3D(DynamicBackbone, X3D):
    """X3D with ``dynamic``."""
