# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""2-D convolutions whose kernels stay in the layout that oneDNN computes with."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from .epilogue import NOTHING, Epilogue

MAX_SHAPES = 64
"""For how many shapes and strides, times parts of the kernels, a layer packs kernels; where there
are more, packing takes longer than it saves."""
# oneDNN refuses bfloat16 where the processor has no instructions for it.
_BFLOAT16 = torch.backends.cpu.get_cpu_capability().startswith('AVX512')
DTYPES = (torch.float32, torch.bfloat16) if _BFLOAT16 else (torch.float32,)
"""Types of which kernels are packed on this processor."""


Version = tuple[int, int, torch.dtype]
"""See :func:`version_of`."""


class _Kernels(NamedTuple):
    """Kernels as they were packed."""

    weight: Tensor
    """What was packed; as long as it is held, no other tensor has its address."""
    version: Version
    packed: Tensor


class PackedCall(NamedTuple):
    """A convolution as oneDNN is asked for it."""

    kernels: Tensor
    bias: Tensor | None
    sizes: tuple[list[int], list[int], list[int]]
    """Padding, stride and dilation."""
    groups: int

    def __call__(self, x: Tensor, epilogue: Epilogue = NOTHING) -> Tensor:
        """Convolve maps of the shape that it was made for, (N, C, H, W)."""
        x = x.contiguous(memory_format=torch.channels_last)
        residual, relu = epilogue
        joined = relu and _is_finite(x) and (residual is None or _is_finite(residual))
        parameters = (self.kernels, self.bias, *self.sizes, self.groups)
        if residual is None:
            y = _convolve(x, *parameters, 'relu' if joined else 'none', [], '')
        else:
            after = 'relu' if joined else None
            y = _convolve_and_add(x, residual, *parameters, 'add', 1.0, after, [], '')
        return y.relu_() if relu and not joined else y


class PackedConv2d:
    """``F.conv2d`` that brings the kernels of one layer into oneDNN's layout once, for inference.

    ``F.conv2d`` does so in every call, or computes with kernels as they lie, which takes far longer
    for pointwise kernels and for maps of few positions. The layout depends on the shape of the
    input and on the stride, and kernels in another one would be brought into it in every call; so
    they are packed by the first call of each kind, and equal ones are kept once. They are packed
    again after they were changed in place or replaced, but writing into ``weight.data`` is not
    noticed. Calls with gradients, under autocast, or of anything but channels-last maps on a CPU
    are those of ``F.conv2d``.
    """

    def __init__(self) -> None:
        self._kernels: dict[tuple[tuple[int, ...], tuple[int, ...]], _Kernels] = {}

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
        """What a call executes; None if ``F.conv2d``."""
        if not is_served(x, weight):
            return None
        sizes = list(padding), list(stride), list(dilation)
        packed = self._pack(x, weight, sizes, groups)
        return None if packed is None else PackedCall(packed, bias, sizes, groups)

    def tensors(self) -> list[Tensor]:
        """Packed kernels, which take memory beside the layer's own."""
        return list({id(k.packed): k.packed for k in self._kernels.values()}.values())

    def _pack(
        self, x: Tensor, weight: Tensor, sizes: Sequence[list[int]], groups: int
    ) -> Tensor | None:
        """Kernels for an input; None where there have been too many."""
        part, version = (weight.data_ptr(), *weight.shape), version_of(weight)
        key = part, (*x.shape, *sizes[1])
        kernels = self._kernels.get(key)
        if kernels is None and len(self._kernels) >= MAX_SHAPES:
            return None
        if kernels is None or kernels.version != version:
            weight = weight.detach()  # stays where it is, even if a parameter moves on
            reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its stub lacks the shape
            packed = reorder(weight.to_mkldnn(), *sizes, groups, x.shape)
            for (other, _), known in self._kernels.items():
                if other == part and known.version == version and _alike(known.packed, packed):
                    packed = known.packed
            kernels = self._kernels[key] = _Kernels(weight, version, packed)
        return kernels.packed

    def __deepcopy__(self, memo: Any) -> 'PackedConv2d':
        return PackedConv2d()  # packed tensors cannot be copied

    def __reduce__(self) -> tuple:
        return PackedConv2d, ()


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
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled('cpu')
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def _is_finite(x: Tensor) -> bool:
    """Whether there is neither NaN nor an infinity in a tensor, of which oneDNN's ReLU would make
    zero."""
    return math.isfinite(x.sum())


def _alike(*packed: Tensor) -> bool:
    """Whether two packed tensors have the same layout."""
    return torch.equal(*map(torch.ops.mkldnn._get_mkldnn_serialized_md, packed))


def version_of(weight: Tensor) -> Version:
    """Another one after every change in place, and after the memory was replaced (``half()``)."""
    changes = 0 if weight.is_inference() else weight._version  # those cannot be changed outside
    return changes, weight.data_ptr(), weight.dtype


if torch.backends.mkldnn.is_available():
    _convolve = torch.ops.mkldnn._convolution_pointwise.default
    _convolve_and_add = torch.ops.mkldnn._convolution_pointwise.binary

    @register_flop_formula(torch.ops.mkldnn._convolution_pointwise)
    def _flops(
        x_shape: list[int], second: list[int], third: Any, *_: Any, out_shape: Any, **kwargs: Any
    ) -> int:
        # With a residual, kernels come third, where a bias, (C,), is otherwise.
        weight_shape = second if third is None or len(third) == 1 else third
        return conv_flop_count(x_shape, weight_shape, out_shape, transposed=False)
