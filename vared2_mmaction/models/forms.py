# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Stock convolutions and pools in the form that is fastest for their input's layout."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import wrappers
from torch import Tensor, nn

from ..ops import DynamicConv2d, DynamicConv3d
from ..ops.compiled import Kernels, Options
from ..ops.epilogue import Epilogue
from ..ops.forms import Conv2d, convolve, max_pool, without_pointwise_steps
from ..ops.plan import Plans
from ..ops.watched import runs
from .kinds import Convolution
from .wrapped import backbone_of

_NO_CHOICE = [((1.0,), (1.0,))]
"""Weights of a convolution that has one option, of a clip."""


class _Formed(nn.modules.conv._ConvNd):
    """What the stock convolutions of both ranks share."""

    plans: Plans | None
    """How inputs are convolved, in a fused network."""
    compiled: Any
    """Compiled code of a fused network; see :class:`~vared2_mmaction.ops.conv.DynamicConv3d`."""
    relu: bool
    """Whether ReLU follows at once, in a fused network."""
    clip_rows, skip = 1, True
    gate = fused_gate = forced = None

    def _convolve(self, clips: Tensor, residual: Tensor | None) -> Tensor:
        """Convolve (N, C, T, H, W), and do what follows."""
        epilogue = Epilogue(residual, self.relu)
        if self.compiled is not None:
            y = self.compiled.modulate(self, clips, _NO_CHOICE * len(clips), epilogue)
            if y is not None:
                return y
        general = functools.partial(self._in_2d, clips)
        if self.plans is None:
            return epilogue(general())
        return self.plans.convolve(clips, self.weight, self.bias, (), general, epilogue)

    def _in_2d(self, clips: Tensor, conv2d: Conv2d = F.conv2d) -> Tensor:
        """Convolve by a 2-D convolution, where that can be."""
        raise NotImplementedError

    def kernels(self) -> Kernels:
        """See :class:`~vared2_mmaction.ops.compiled.CompiledConv`."""
        raise NotImplementedError

    def options(self) -> Options:
        """See :class:`~vared2_mmaction.ops.compiled.CompiledConv`."""
        costs = (math.prod(self.weight.shape[1:]), 0, 0, 0)
        return Options((self.out_channels,), ((self.weight.new_empty(0),),), costs=costs)


class FormedConv2d(_Formed, nn.Conv2d):
    """A stock 2-D convolution whose training is safe with channels innermost; see
    :func:`~vared2_mmaction.ops.forms.without_pointwise_steps`."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if x.dim() != 4 or self.padding_mode != 'zeros' or isinstance(self.padding, str):
            return Epilogue(residual, self.relu)(nn.Conv2d.forward(self, x))
        added = None if residual is None else residual.unsqueeze(2)
        return self._convolve(x.unsqueeze(2), added).squeeze(2)

    def _in_2d(self, clips: Tensor, conv2d: Conv2d = F.conv2d) -> Tensor:
        padding: Any = self.padding
        x, stride = without_pointwise_steps(
            clips.squeeze(2), self.kernel_size, self.stride, padding
        )
        sizes = (tuple(stride), padding, self.dilation, self.groups)
        return conv2d(x, self.weight, self.bias, *sizes).unsqueeze(2)

    def kernels(self) -> Kernels:
        padding: Any = self.padding
        sizes = ((1, *self.stride), (0, *padding), (1, *self.dilation))
        return Kernels(self.weight.unsqueeze(2), self.bias, *sizes)


class FormedConv3d(_Formed, nn.Conv3d):
    """A stock 3-D convolution; see :func:`~vared2_mmaction.ops.forms.convolve`."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if x.dim() != 5 or self.padding_mode != 'zeros' or isinstance(self.padding, str):
            return Epilogue(residual, self.relu)(nn.Conv3d.forward(self, x))
        return self._convolve(x, residual)

    def _in_2d(self, clips: Tensor, conv2d: Conv2d = F.conv2d) -> Tensor:
        return convolve(clips, *self.kernels(), self.groups, conv2d)

    def kernels(self) -> Kernels:
        padding: Any = self.padding
        return Kernels(self.weight, self.bias, self.stride, padding, self.dilation)


class FormedMaxPool3d(nn.MaxPool3d):
    """A stock 3-D pool; see :func:`~vared2_mmaction.ops.forms.max_pool`."""

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
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    wrappers.Conv2d,
    wrappers.Conv3d,
    FormedConv2d,
    FormedConv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    wrappers.ConvTranspose2d,
    wrappers.ConvTranspose3d,
    DynamicConv2d,
    DynamicConv3d,
)
_STOCK: dict[type[nn.Module], type[nn.Module]] = {
    FormedConv2d: nn.Conv2d,
    FormedConv3d: nn.Conv3d,
    FormedMaxPool3d: nn.MaxPool3d,
}


def is_convolution(module: nn.Module) -> bool:
    """Whether a module convolves as PyTorch's or this project's classes do, whatever it was
    converted to; another subclass may do something else with its weights."""
    return runs(module, *_CONVOLUTIONS)


FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def use_forms(model: nn.Module) -> None:
    """Change a model's stock convolutions and 3-D pools, in place; parameters stay."""
    for module in model.modules():
        if formed := _FORMED.get(type(module)):
            module.__class__ = formed
            if isinstance(module, _Formed):
                module.plans, module.compiled, module.relu = None, None, False


def restore_stock_forms(model: nn.Module) -> None:
    """The inverse of :func:`use_forms`."""
    for module in model.modules():
        if stock := _STOCK.get(type(module)):
            module.__class__ = stock
            for attribute in ('plans', 'compiled', 'relu'):
                module.__dict__.pop(attribute, None)


def channels_last(x: Tensor) -> Tensor:
    """Frames (N, C, H, W) or clips (N, C, T, H, W) with channels innermost on a CPU.

    Two to seven times as fast there for 3-D convolutions of one clip. On a GPU the layout is the
    user's choice.
    """
    if x.device.type != 'cpu':
        return x
    return x.contiguous(memory_format=FORMATS[x.dim()])


def keep_channels_last(model: nn.Module) -> None:
    """Lay out kernels on a CPU as their inputs are, in place, or every call would copy them."""
    for module in model.modules():
        if isinstance(module, Convolution) and not is_convolution(module):
            continue  # what it does with its kernels is not known
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.dim() in FORMATS:
                tensor.data = channels_last(tensor.data)


def pack_kernels(model: nn.Module, execute: Callable[[nn.Module], Any] = lambda conv: None) -> None:
    """Keep the kernels of convolutions that have a 2-D form as oneDNN computes with them, in place,
    for inference; see :class:`~vared2_mmaction.ops.plan.Plans`.

    Args:
        model: A network with normalisation folded.
        execute: Gives a convolution its compiled code, or None.
    """
    for module in model.modules():
        if isinstance(module, DynamicConv2d | DynamicConv3d | _Formed):
            module.plans, module.compiled = Plans(), execute(module)


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
