# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The same convolution or pooling in the form that is fastest for the layout of its input.

Where channels lie innermost (channels-last), a (1, k, k) kernel is a 2-D one over frames and a
(k, 1, 1) kernel a 2-D one over time and positions, both on views of the input. PyTorch's 3-D
kernels take up to several times as long for the same result on a CPU.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Sizes = Sequence[int]
Conv2d = Callable[..., Tensor]
"""``F.conv2d``, or what takes its place."""
AXES = {'contiguous': (0, 1, 2, 3, 4), 'frames': (0, 2, 1, 3, 4), 'channels last': (0, 2, 3, 4, 1)}
"""Axes of clips (N, C, T, H, W) in the order in which they lie in memory, by their layout."""
BACK = {lies: tuple(map(axes.index, range(5))) for lies, axes in AXES.items()}
"""The inverse."""
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Of maps whose channels lie innermost, by their number of dimensions."""


def innermost(x: Tensor) -> Tensor:
    """Frames (N, C, H, W) or clips (N, C, T, H, W) with channels innermost, a view if they are."""
    return x.contiguous(memory_format=FORMATS[x.dim()])


def layout(x: Tensor) -> str:
    """How clips (N, C, T, H, W) lie in memory: 'channels last', 'frames' (of a 2-D network, one
    after the other) or 'contiguous'."""
    if x.stride(1) == 1 and x.shape[1] > 1:
        return 'channels last'
    return 'frames' if x.stride(2) > x.stride(1) else 'contiguous'


def settled(x: Tensor) -> Tensor:
    """Clips (N, C, T, H, W) with the strides that their layout gives to dimensions of size one.

    A view gives them any, and kernels that are not ours take a tensor for what its strides say: the
    backward pass of BatchNorm in PyTorch 2.13 is wrong where they belong to no layout.
    """
    if 1 not in x.shape:
        return x
    lies = layout(x)
    ordered = in_memory_order(x, lies)  # a view of what lies dense has no choice
    return from_memory_order(ordered.view(ordered.shape), lies)


def in_memory_order(clips: Tensor, lies: str) -> Tensor:
    """View clips (N, C, T, H, W) of a layout with their axes in the order in which they lie."""
    return clips.permute(AXES[lies])


def from_memory_order(x: Tensor, lies: str) -> Tensor:
    """The inverse of :func:`in_memory_order`."""
    return x.permute(BACK[lies])


def as_frames(clips: Tensor) -> Tensor:
    """Clips (N, C, T, H, W) as frames (N T, C, H, W), a view where that can be."""
    if layout(clips) == 'channels last':  # as they lie, or a single frame would not say so
        return clips.movedim(1, -1).flatten(0, 1).movedim(-1, 1)
    return clips.transpose(1, 2).flatten(0, 1)


def as_clips(frames: Tensor, length: int) -> Tensor:
    """Frames (N T, C, H, W) as clips (N, C, T, H, W) of a length T."""
    return settled(frames.view(len(frames) // length, length, *frames.shape[1:]).transpose(1, 2))


def empty_clips(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Clips without content, (N, C, T, H, W), in the layout, type and device of others."""
    return torch.empty_permuted(shape, AXES[layout(like)], dtype=like.dtype, device=like.device)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int,
    conv2d: Conv2d = F.conv2d,
) -> Tensor:
    """Convolve clips in 3-D.

    Args:
        x: Clips, (N, C, T, H, W).
        weight: Kernels, (C', C / groups, k_t, k_h, k_w).
        bias: (C',) or None.
        stride: In time, height and width; so are padding (with zeros) and dilation.
        padding: See stride.
        dilation: See stride.
        groups: Number of groups.
        conv2d: Executes what is a convolution in 2-D.
    """
    kernel = weight.shape[2:]
    x, stride = without_pointwise_steps(x, kernel, stride, padding)
    lies = layout(x)
    within_frames = kernel[0] == 1 and padding[0] == 0 and lies != 'contiguous'
    along_time = _is_along_time(kernel, stride, padding)
    # Frames that are left out would have to be copied away; steps along a line need no copy.
    if along_time and lies == 'channels last' and not (within_frames and stride[0] == 1):
        in_time = (stride[0], 1), (padding[0], 0), (dilation[0], 1)
        return _from_lines(conv2d(_lines(x), weight.squeeze(-1), bias, *in_time, groups), x)
    if within_frames:
        sizes = stride[1:], padding[1:], dilation[1:]
        frames = as_frames(x[:, :, :: stride[0]] if stride[0] > 1 else x)
        y = conv2d(frames, weight.squeeze(2), bias, *sizes, groups)
        return as_clips(y, -(-x.shape[2] // stride[0]))
    return F.conv3d(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)


def has_2d_form(kernel: Sizes, stride: Sizes, padding: Sizes) -> bool:
    """Whether a convolution is one in 2-D where channels lie innermost."""
    return (kernel[0], padding[0]) == (1, 0) or _is_along_time(kernel, stride, padding)


def _is_along_time(kernel: Sizes, stride: Sizes, padding: Sizes) -> bool:
    """Whether a position is made from what lies at the same position of some frames."""
    return (*kernel[1:], *stride[1:], *padding[1:]) == (1, 1, 1, 1, 0, 0)


def without_pointwise_steps(
    x: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes
) -> tuple[Tensor, Sizes]:
    """Leave out what a pointwise strided convolution steps over before it, where it must not step.

    Where channels lie innermost and are fewer than a vector holds, the backward pass of oneDNN's
    kernel writes beyond its buffers (uxlfoundation/oneDNN#6035).

    Args:
        x: Input, (N, C, ...) with as many more dimensions as there are sizes.
        kernel: Sizes of the kernel; stride and padding are those of the same dimensions.
        stride: See kernel.
        padding: See kernel.

    Returns:
        Input and stride for the same result.
    """
    pointwise = max(kernel) == 1 and max(padding) == 0 and max(stride) > 1
    spared = not torch.is_grad_enabled() or x.device.type != 'cpu'
    if not pointwise or x.shape[1] >= 16 or x.stride(1) != 1 or spared:
        return x, stride
    steps = (slice(None, None, step) for step in stride)
    taken = x[(slice(None), slice(None), *steps)]
    # Dense again, or the layout would be lost with the kernel's own copy.
    return innermost(taken), (1,) * len(stride)


def max_pool(
    x: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, ceil_mode: bool
) -> Tensor:
    """Pool clips, (N, C, T, H, W); arguments are in time, height and width."""
    lies = layout(x)
    if (kernel[0], padding[0], stride[0]) == (1, 0, 1) and lies != 'contiguous':
        k, s, p, d = (tuple(size[1:]) for size in (kernel, stride, padding, dilation))
        return as_clips(F.max_pool2d(as_frames(x), k, s, p, d, ceil_mode), x.shape[2])
    if _is_along_time(kernel, stride, padding) and lies == 'channels last':
        k, s, p, d = (kernel[0], 1), (stride[0], 1), (padding[0], 0), (dilation[0], 1)
        return _from_lines(F.max_pool2d(_lines(x), k, s, p, d, ceil_mode), x)
    return F.max_pool3d(x, tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), ceil_mode)


def _lines(clips: Tensor) -> Tensor:
    """Clips with channels innermost as lines of positions over time, (N, C, T, H W), a view."""
    # Flattened behind the channels, a batch of one would get a stride that hides the layout.
    return clips.movedim(1, -1).flatten(2, 3).movedim(-1, 1)


def _from_lines(y: Tensor, clips: Tensor) -> Tensor:
    """The inverse of :func:`_lines`, for what was made of the lines of clips."""
    return settled(y.view(*y.shape[:3], *clips.shape[3:]))
