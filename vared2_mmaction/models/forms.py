# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Stock convolutions and pools in the form that is fastest for their input's layout."""

from typing import Any

import torch.nn.functional as F
from mmcv.cnn.bricks import wrappers
from torch import Tensor, nn

from ..layout import FORMATS, convolve, innermost, max_pool, without_pointwise_steps
from ..watched import runs
from .kinds import Convolution
from .layers import CONVOLUTIONS
from .wrapped import backbone_of


class FormedConv2d(nn.Conv2d):
    """A stock 2-D convolution whose training is safe with channels innermost; see
    :func:`~vared2_mmaction.layout.without_pointwise_steps`."""

    def forward(self, x: Tensor) -> Tensor:
        padding: Any = self.padding
        if x.dim() != 4 or self.padding_mode != 'zeros' or isinstance(padding, str):
            return super().forward(x)
        x, stride = without_pointwise_steps(x, self.kernel_size, self.stride, padding)
        sizes = tuple(stride), padding, self.dilation, self.groups
        return F.conv2d(x, self.weight, self.bias, *sizes)


class FormedConv3d(nn.Conv3d):
    """A stock 3-D convolution; see :func:`~vared2_mmaction.layout.convolve`."""

    def forward(self, x: Tensor) -> Tensor:
        padding: Any = self.padding
        if x.dim() != 5 or self.padding_mode != 'zeros' or isinstance(padding, str):
            return super().forward(x)
        sizes = self.stride, padding, self.dilation, self.groups
        return convolve(x, self.weight, self.bias, *sizes)


class FormedMaxPool3d(nn.MaxPool3d):
    """A stock 3-D pool; see :func:`~vared2_mmaction.layout.max_pool`."""

    def forward(self, x: Tensor) -> Any:
        if x.dim() != 5 or self.return_indices:
            return super().forward(x)
        sizes = (self.kernel_size, self.stride, self.padding, self.dilation)
        kernel, stride, padding, dilation = (
            (size,) * 3 if isinstance(size, int) else size for size in sizes
        )
        return max_pool(x, kernel, stride, padding, dilation, self.ceil_mode)


# Exact types, as in `layers.CONVOLUTIONS`.
_FORMED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: FormedConv2d,
    wrappers.Conv2d: FormedConv2d,
    nn.Conv3d: FormedConv3d,
    wrappers.Conv3d: FormedConv3d,
    nn.MaxPool3d: FormedMaxPool3d,
    wrappers.MaxPool3d: FormedMaxPool3d,
}
_CONVOLUTIONS: tuple[type[nn.Module], ...] = (
    *(*Convolution, wrappers.ConvTranspose2d, wrappers.ConvTranspose3d),
    *(*CONVOLUTIONS, *CONVOLUTIONS.values(), FormedConv2d, FormedConv3d),
)
_STOCK: dict[type[nn.Module], Any] = {formed: formed.__base__ for formed in _FORMED.values()}


def is_convolution(module: nn.Module) -> bool:
    """Whether a module convolves as PyTorch's or this project's classes do, whatever it was
    converted to; another subclass may do something else with its weights."""
    return runs(module, *_CONVOLUTIONS)


def use_forms(model: nn.Module) -> None:
    """Change a model's stock convolutions and 3-D pools, in place; parameters stay."""
    for module in model.modules():
        if formed := _FORMED.get(type(module)):
            module.__class__ = formed


def restore_stock_forms(model: nn.Module) -> None:
    """The inverse of :func:`use_forms`."""
    for module in model.modules():
        if stock := _STOCK.get(type(module)):
            module.__class__ = stock


def channels_last(x: Tensor) -> Tensor:
    """Frames (N, C, H, W) or clips (N, C, T, H, W) with channels innermost on a CPU, where that is
    two to seven times as fast in 3-D for one clip. On a GPU the layout is the user's choice."""
    return innermost(x) if x.device.type == 'cpu' else x


def keep_channels_last(model: nn.Module) -> None:
    """Lay out kernels on a CPU as their inputs are, in place, or every call would copy them."""
    for module in model.modules():
        if isinstance(module, Convolution) and not is_convolution(module):
            continue  # what it does with its kernels is not known
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.dim() in FORMATS:
                tensor.data = channels_last(tensor.data)


def accelerate(model: nn.Module) -> nn.Module:
    """Give a stock network what a dynamic one has besides skipping, in place.

    Convolutions and pools run in the fastest equal form, on a CPU with channels innermost. Dynamic
    backbones do so by themselves; a fair comparison needs it on the other side as well.

    Args:
        model: A recognizer or a backbone.

    Returns:
        The same model, with the same parameters.
    """
    backbone = backbone_of(model)
    use_forms(backbone)
    keep_channels_last(backbone)
    if not any(hook is _to_channels_last for hook in backbone._forward_pre_hooks.values()):
        backbone.register_forward_pre_hook(_to_channels_last)
    return model


def _to_channels_last(module: nn.Module, args: tuple) -> tuple:
    return (channels_last(args[0]), *args[1:])
