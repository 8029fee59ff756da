# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""2-D convolutions whose kernels stay in the layout that oneDNN computes with."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from ...layout import convolve, has_2d_form
from ..base import LayerRecord

MAX_SHAPES = 64
"""For how many shapes and strides, times parts of the kernels, a layer packs kernels; where there
are more, packing takes longer than it saves."""
# oneDNN refuses bfloat16 where the processor has no instructions for it.
_BFLOAT16 = torch.backends.cpu.get_cpu_capability().startswith('AVX512')
DTYPES = (torch.float32, torch.bfloat16) if _BFLOAT16 else (torch.float32,)
"""Types of which kernels are packed on this processor."""
_IS_AVAILABLE = torch.backends.mkldnn.is_available()


class PackedCall(NamedTuple):
    """A convolution as oneDNN is asked for it."""

    kernels: Tensor
    bias: Tensor | None
    sizes: tuple[list[int], list[int], list[int]]
    """Padding, stride and dilation."""
    groups: int

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve maps of the shape that it was made for, (N, C, H, W)."""
        x = x.contiguous(memory_format=torch.channels_last)
        return _convolve(x, self.kernels, self.bias, *self.sizes, self.groups, 'none', [], '')


class PackedConv2d:
    """``F.conv2d`` that brings the kernels of one layer into oneDNN's layout once, for inference.

    ``F.conv2d`` does so in every call, or computes with kernels as they lie, which takes far longer
    for pointwise kernels and for maps of few positions. The layout depends on the shape of the
    input and on the stride, and kernels in another one would be brought into it in every call; so
    they are packed by the first call of each kind, and equal ones are kept once. Kernels must stay
    as they are. Calls with gradients, under autocast, or of anything but channels-last maps on a
    CPU are those of ``F.conv2d``.
    """

    def __init__(self) -> None:
        # The kernels as they were, so that no other tensor has their address, and packed.
        self._packed: dict[tuple, tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Tensor, *args: Any) -> Tensor:
        """Convolve (N, C, H, W); arguments are those of ``F.conv2d``, all of them."""
        call = self.prepare(x, *args)
        return F.conv2d(x, *args) if call is None else call(x)

    def prepare(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> PackedCall | None:
        """What a call executes; None if ``F.conv2d``, as after too many kinds of calls."""
        if not is_served(x, weight):
            return None
        sizes = list(padding), list(stride), list(dilation)
        part = weight.data_ptr(), *weight.shape
        key = part, (*x.shape, *sizes[1])
        if key not in self._packed:
            if len(self._packed) >= MAX_SHAPES:
                return None
            weight = weight.detach()
            reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its stub lacks the shape
            packed = reorder(weight.to_mkldnn(), *sizes, groups, x.shape)
            for (other, _), (_, known) in self._packed.items():
                if other == part and _alike(known, packed):
                    packed = known
            self._packed[key] = weight, packed
        return PackedCall(self._packed[key][1], bias, sizes, groups)

    def tensors(self) -> list[Tensor]:
        """Packed kernels, which take memory beside the layer's own."""
        return list({id(packed): packed for _, packed in self._packed.values()}.values())


class PackedConvolution:
    """What pairs of options of a layer compute, with packed kernels.

    Args:
        record: Of a layer for which :func:`packs` holds.
    """

    def __init__(self, record: LayerRecord) -> None:
        self.record = record
        self.conv2d = PackedConv2d()
        self._kept = record.choice.constants.channels if record.choice else (len(record.weight),)

    def __call__(
        self, clips: Tensor, channel: int = 0, temporal: int = 0, conv2d: Any = None, step: int = 1
    ) -> Tensor | None:
        """What a pair of options computes of clips (N, C, T, H, W); see ``DynamicConv3d.convolve``.
        None for clips that are not served.

        ``conv2d`` executes what is a convolution in 2-D; by default packed kernels do. Clips may
        consist of every step-th frame already.
        """
        record, k = self.record, self._kept[channel]
        weight, bias = record.weight, record.bias
        if not is_served(clips, weight):
            return None
        if k < len(weight):
            weight, bias = weight[:k], None if bias is None else bias[:k]
        stride = record.stride[0] * 2**temporal // step, *record.stride[1:]
        sizes = stride, record.padding, record.dilation, record.groups
        return convolve(clips, weight, bias, *sizes, conv2d or self.conv2d)

    def tensors(self) -> list[Tensor]:
        """Packed kernels, which take memory beside the layer's own."""
        return self.conv2d.tensors()


def packs(record: LayerRecord) -> bool:
    """Whether there is a 2-D form, of kernels that can be packed here."""
    return (
        _IS_AVAILABLE
        and record.weight.device.type == 'cpu'
        and record.weight.dtype in DTYPES
        and (record.choice is None or record.groups == 1)
        and has_2d_form(record.weight.shape[2:], record.stride, record.padding)
    )


def is_served(x: Tensor, weight: Tensor) -> bool:
    """Whether packed kernels are used for maps or clips."""
    return bool(
        x.device.type == 'cpu'
        and not torch.is_grad_enabled()
        and x.dtype == weight.dtype
        and x.dtype in DTYPES
        and x.shape[1] > 1
        and x.stride(1) == 1
        and x.numel() > 0
        and _IS_AVAILABLE
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled('cpu')
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def _alike(*packed: Tensor) -> bool:
    """Whether two packed tensors have the same layout."""
    return torch.equal(*map(torch.ops.mkldnn._get_mkldnn_serialized_md, packed))


if _IS_AVAILABLE:
    _convolve = torch.ops.mkldnn._convolution_pointwise.default

    @register_flop_formula(torch.ops.mkldnn._convolution_pointwise)
    def _flops(
        x_shape: list[int], second: list[int], third: Any, *_: Any, out_shape: Any, **kwargs: Any
    ) -> int:
        # With a residual, kernels come third, where a bias, (C,), is otherwise.
        weight_shape = second if third is None or len(third) == 1 else third
        return conv_flop_count(x_shape, weight_shape, out_shape, transposed=False)
