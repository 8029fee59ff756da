# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What of a layer kernels read: its own kernels and tables, laid out for them."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..compiled import Kernels
from ..epilogue import Epilogue
from ..forms import convolve, has_2d_form
from ..packed import Version, version_of
from .convolution import TAPS
from .padded import extent, narrowed, padded_channels, widened

_ROWS, _DEPTH = 128, 128
"""Output channels, and bytes of input channels, that kernels are padded to: the largest tile."""


class Prepared(NamedTuple):
    """A layer's parameters in one type."""

    weight: Tensor
    """(output channels, taps, input channels), padded."""
    bias: Tensor
    """(output channels,), padded, in float32."""
    tables: Tensor
    """Scale and shift of what each pair of options rebuilds, (channel options, temporal options, 2,
    frame offsets, C), in float32."""
    table_options: int
    """Temporal options of the tables."""
    unforced: Tensor
    """Options, (1, 2), that nobody reads."""
    aligned: int
    """What the number of channels that any option keeps is a multiple of, at most 8."""
    multiple: int
    """See :func:`~vared2_mmaction.ops.kept`."""
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    stock: Kernels | None
    """Of a stock convolution, what a library convolves with."""
    wide: Kernels | None
    """The same with as many channels as maps have with the zeros behind them, if that is more."""
    parameters: tuple[Tensor, Tensor | None]
    version: Version

    @classmethod
    def of(cls, owner: Any, dtype: torch.dtype) -> 'Prepared':
        """Lay out the parameters of a layer.

        Args:
            owner: The layer; see :class:`~vared2_mmaction.ops.gpu.layer.DeviceConv`.
            dtype: Type of the maps.
        """
        own, options = owner.kernels(), owner.options()
        channels, inputs, *kernel = own.weight.shape
        sizes = (channels, _ROWS), (inputs, _DEPTH // dtype.itemsize)
        rows, depth = (-(-n // p) * p for n, p in sizes)
        parameters = owner._parameters
        stock = own if owner.gate is None else None
        return cls(
            _kernels(own.weight.to(dtype), rows, depth),
            _bias(own, rows),
            _tables(options.tables, channels),
            len(options.tables[0]),
            torch.zeros(1, 2, dtype=torch.int32, device=own.weight.device),
            math.gcd(8, *options.kept),
            options.multiple,
            tuple(kernel),
            own.stride,
            own.padding,
            own.dilation,
            None if stock is None else _cast(stock, dtype),
            None if stock is None else _with_zeros(stock, dtype),
            (parameters['weight'], parameters['bias']),
            version_of(parameters['weight']),
        )

    def serves(self, owner: Any, dtype: torch.dtype) -> bool:
        """Whether the layer's parameters are as they were, and maps are of that type."""
        weight, bias = self.parameters
        now = owner._parameters
        same = (
            now['weight'] is weight and now['bias'] is bias and version_of(weight) == self.version
        )
        return same and self.weight.dtype == dtype and self.weight.device == weight.device

    def output(self, x: Tensor) -> tuple[int, ...]:
        """Frames, rows and columns of the output of clips (N, C, T, H, W)."""
        sizes = zip(x.shape[2:], *self.geometry, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)

    def taps_in_time(self, x: Tensor) -> tuple[int, int]:
        """The first tap in time that sees any frame of clips, and how many there are from it to the
        last one: in the last stages of a network most see padding only."""
        return _taps_that_see(x.shape[2], self.output(x)[0], *(sizes[0] for sizes in self.geometry))

    def fits(self, x: Tensor) -> bool:
        """Whether kernels can address all of an input."""
        outputs = math.prod(self.output(x))
        few_taps = max(self.kernel) <= TAPS.value
        elements = max(extent(x[:1]), outputs * self.weight.shape[0])
        return few_taps and outputs < 2**20 and elements < 2**30 and len(x) <= 1024

    @property
    def geometry(self) -> tuple[tuple[int, ...], ...]:
        """Kernel, stride, padding and dilation in time, height and width."""
        return self.kernel, self.stride, self.padding, self.dilation

    def library_calls(
        self, owner: Any, x: Tensor, epilogue: Epilogue
    ) -> list[Callable[[], Tensor]]:
        """How PyTorch convolves: with what follows behind it, or with ReLU in it.

        Args:
            owner: The layer.
            x: Clips, (N, C, T, H, W), in the type of this.
            epilogue: What follows.
        """
        assert self.stock is not None
        channels = self.stock.weight.shape[0]
        alone = epilogue.relu and epilogue.residual is None
        joined = alone and x.is_cuda and has_2d_form(*self.geometry[:3])

        def call(kernels: Kernels, all_channels: bool, conv2d: Any) -> Tensor:
            y = convolve(widened(x) if all_channels else x, *kernels, owner.groups, conv2d)
            y = epilogue(y) if conv2d is F.conv2d else y
            return narrowed(y, channels) if all_channels else y

        forms = [F.conv2d, torch.cudnn_convolution_relu] if joined else [F.conv2d]
        kinds = [(self.stock, False)]
        if self.wide is not None and epilogue.residual is None:
            kinds.append((self.wide, True))
        return [functools.partial(call, *kind, form) for kind in kinds for form in forms]

    @property
    def bounded(self) -> bool:
        """Whether a kernel reaches beyond the input, or could."""
        return max(self.padding) > 0


@functools.lru_cache(maxsize=1024)
def _taps_that_see(
    frames: int, outputs: int, taps: int, stride: int, padding: int, dilation: int
) -> tuple[int, int]:
    """See :meth:`Prepared.taps_in_time`."""
    first = range(-padding, outputs * stride - padding, stride)
    seeing = [
        tap for tap in range(taps) if any(0 <= frame + tap * dilation < frames for frame in first)
    ]
    return (seeing[0], seeing[-1] - seeing[0] + 1) if seeing else (0, taps)


def _kernels(weight: Tensor, rows: int, depth: int) -> Tensor:
    channels, inputs = weight.shape[:2]
    taps = weight.flatten(2).transpose(1, 2)
    return F.pad(taps, (0, depth - inputs, 0, 0, 0, rows - channels)).contiguous()


def _cast(kernels: Kernels, dtype: torch.dtype) -> Kernels:
    weight = kernels.weight.to(dtype, memory_format=torch.channels_last_3d)
    bias = None if kernels.bias is None else kernels.bias.to(dtype)
    return kernels._replace(weight=weight, bias=bias)


def _with_zeros(kernels: Kernels, dtype: torch.dtype) -> Kernels | None:
    """Kernels for maps with the zeros behind their channels, if there are such zeros."""
    outputs, inputs = (padded_channels(n) - n for n in kernels.weight.shape[:2])
    if not outputs and not inputs:
        return None
    weight = F.pad(kernels.weight, (0, 0) * 3 + (0, inputs, 0, outputs))
    bias = None if kernels.bias is None else F.pad(kernels.bias, (0, outputs))
    return _cast(kernels._replace(weight=weight, bias=bias), dtype)


def _bias(kernels: Any, rows: int) -> Tensor:
    bias = kernels.bias
    if bias is None:
        return kernels.weight.new_zeros(rows, dtype=torch.float32)
    return F.pad(bias.float(), (0, rows - len(bias)))


def _tables(tables: Any, channels: int) -> Tensor:
    offsets = 2 ** (len(tables[0]) - 1)
    made = []
    for row in tables:
        for table in row:
            if table.numel() == 0:  # of a stock convolution
                table = torch.stack((table.new_ones(1, channels), table.new_zeros(1, channels)))
            made.append(F.pad(table.float(), (0, 0, 0, offsets - table.shape[1])))
    return torch.stack(made).contiguous()
