# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""How a layer convolves clips of one geometry by oneDNN, for C++ to do the same."""

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...layout import innermost
from .packed import PackedCall, PackedConvolution

Geometry = tuple[tuple[int, ...], tuple[int, ...]]
"""Size and stride."""


class Plan(NamedTuple):
    """One view of the input, one call of oneDNN with packed kernels, one view of the result."""

    step: int
    """Every step-th frame is copied together first; 1 takes clips as they lie."""
    view: Geometry
    """Of what is convolved, which begins where the input does."""
    call: PackedCall
    convolved: Geometry
    """Of the result as it is convolved."""


def plan(
    packed: PackedConvolution, shape: tuple[int, ...], channel: int, temporal: int
) -> Plan | None:
    """How a pair of options convolves dense clips of a shape (N, C, T, H, W), or None where that
    takes more than a view."""
    record, (number, channels, frames, *area) = packed.record, shape
    pace = record.stride[0] * 2**temporal
    # Frames that are left out are not copied, if the kernel can step over them.
    within_frames = record.weight.shape[2] == 1 and not record.padding[0]
    for step in {1: None, pace: None} if within_frames else (1,):
        x = record.weight.new_zeros(number, channels, -(-frames // step), *area)
        found = _watch(packed, innermost(x), channel, temporal, step)
        if found is not None:
            return found
    return None


def _watch(
    packed: PackedConvolution, x: Tensor, channel: int, temporal: int, step: int
) -> Plan | None:
    """Convolve clips, and tell how."""
    seen: list[tuple[Tensor, PackedCall | None, Tensor]] = []

    def conv2d(maps: Tensor, *args: Any) -> Tensor:
        call = packed.conv2d.prepare(maps, *args)
        result = F.conv2d(maps, *args) if call is None else call(maps)
        seen.append((maps, call, result))
        return result

    y = packed(x, channel, temporal, conv2d, step)
    if y is None or len(seen) != 1:
        return None
    maps, call, result = seen[0]
    viewed = maps.data_ptr() == x.data_ptr() and y.data_ptr() == result.data_ptr()
    if call is None or not viewed or not maps.is_contiguous(memory_format=torch.channels_last):
        return None
    if result.shape[2:] == (1, 1) and not adds_to_elements():
        return None
    return Plan(step, _geometry(maps), call, _geometry(result))


def _geometry(x: Tensor) -> Geometry:
    return tuple(x.shape), x.stride()


@functools.cache
def adds_to_elements() -> bool:
    """Whether PyTorch can add a residual to maps of one element; 2.8 cannot."""
    x = torch.zeros(1, 2, 1, 1).to(memory_format=torch.channels_last)
    add = torch.ops.mkldnn._convolution_pointwise.binary
    try:
        add(x, x, x.expand(2, 2, 1, 1), None, [0, 0], [1, 1], [1, 1], 1, 'add', 1.0, None, [], '')
    except RuntimeError:
        return False
    return True
