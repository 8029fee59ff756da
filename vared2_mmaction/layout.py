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
_AXES = {'contiguous': (0, 1, 2, 3, 4), 'frames': (0, 2, 1, 3, 4), 'channels last': (0, 2, 3, 4, 1)}


def layout(x: Tensor) -> str:
    """How clips (N, C, T, H, W) lie in memory: 'channels last', 'frames' (of a 2-D network, one
    after the other) or 'contiguous'."""
    if x.stride(1) == 1 and x.shape[1] > 1:
        return 'channels last'
    return 'frames' if x.stride(2) > x.stride(1) else 'contiguous'


def settled(x: Tensor, lies: str | None = None) -> Tensor:
    """Clips (N, C, T, H, W) with the strides that their layout gives to dimensions of size one.

    A view gives them any, and kernels that are not ours take a tensor for what its strides say: the
    backward pass of BatchNorm in PyTorch 2.13 is wrong where they belong to no layout.

    Args:
        x: The clips.
        lies: Their layout, where it is known; a single frame may seem to lie otherwise.
    """
    if 1 not in x.shape:
        return x
    lies = lies or layout(x)
    ordered = in_memory_order(x, lies)  # a view of what lies dense has no choice
    return from_memory_order(ordered.view(ordered.shape), lies)


def in_memory_order(clips: Tensor, lies: str) -> Tensor:
    """View clips (N, C, T, H, W) of a layout with their axes in the order in which they lie."""
    return clips.permute(_AXES[lies])


def from_memory_order(x: Tensor, lies: str) -> Tensor:
    """The inverse of :func:`in_memory_order`."""
    axes = _AXES[lies]
    return x.permute([axes.index(axis) for axis in range(len(axes))])


def as_frames(clips: Tensor) -> Tensor:
    """Clips (N, C, T, H, W) as frames (N T, C, H, W), a view where that can be."""
    if layout(clips) == 'channels last':  # as they lie, or a single frame would not say so
        return clips.movedim(1, -1).flatten(0, 1).movedim(-1, 1)
    return clips.transpose(1, 2).flatten(0, 1)


def as_clips(frames: Tensor, length: int) -> Tensor:
    """Frames (N T, C, H, W) as clips (N, C, T, H, W) of a length T."""
    return settled(frames.view(len(frames) // length, length, *frames.shape[1:]).transpose(1, 2))


def repeat(x: Tensor, dim: int, times: int, each: bool, lies: str) -> Tensor:
    """Repeat what lies along a dimension of clips (N, C, T, H, W), in their layout.

    Args:
        x: The clips.
        dim: The dimension.
        times: How often.
        each: Whether copies of one index lie side by side; otherwise all follow on all.
        lies: Layout of the clips, which a part of them may not show.
    """
    at = _AXES[lies].index(dim)
    sizes = [-1] * 6
    sizes[at + each] = times
    copies = in_memory_order(x, lies).unsqueeze(at + each).expand(sizes).flatten(at, at + 1)
    return from_memory_order(copies, lies)


def interleave(parts: Sequence[Tensor], lies: str) -> Tensor:
    """Frames of clips (N, C, T, H, W) in turn: the first of each, then the second of each.

    Args:
        parts: The clips.
        lies: Their layout.
    """
    at = _AXES[lies].index(2)
    frames = torch.stack([in_memory_order(part, lies) for part in parts], at + 1)
    return from_memory_order(frames.flatten(at, at + 1), lies)


def empty_clips(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Clips without content, (N, C, T, H, W), in the layout, type and device of others."""
    axes = _AXES[layout(like)]
    return torch.empty_permuted(shape, axes, dtype=like.dtype, device=like.device)


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
    within_positions = (*kernel[1:], *stride[1:], *padding[1:]) == (1, 1, 1, 1, 0, 0)
    # Frames that are left out would have to be copied away; steps along a line need no copy.
    if within_positions and lies == 'channels last' and not (within_frames and stride[0] == 1):
        return _over_time(
            x,
            lambda lines: conv2d(
                lines,
                weight.squeeze(-1),
                bias,
                (stride[0], 1),
                (padding[0], 0),
                (dilation[0], 1),
                groups,
            ),
        )
    if within_frames:
        return _over_frames(
            x,
            stride[0],
            lambda frames: conv2d(
                frames, weight.squeeze(2), bias, stride[1:], padding[1:], dilation[1:], groups
            ),
        )
    return F.conv3d(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)


def has_2d_form(kernel: Sizes, stride: Sizes, padding: Sizes) -> bool:
    """Whether a convolution is one in 2-D where channels lie innermost."""
    within_frames = (kernel[0], padding[0]) == (1, 0)
    return within_frames or (*kernel[1:], *stride[1:], *padding[1:]) == (1, 1, 1, 1, 0, 0)


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
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return taken.contiguous(memory_format=last), (1,) * len(stride)


def max_pool(
    x: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, ceil_mode: bool
) -> Tensor:
    """Pool clips, (N, C, T, H, W); arguments are in time, height and width."""
    lies = layout(x)
    within_frames = (kernel[0], padding[0], stride[0]) == (1, 0, 1)
    if within_frames and lies != 'contiguous':
        return _over_frames(
            x,
            1,
            lambda frames: F.max_pool2d(
                frames,
                tuple(kernel[1:]),
                tuple(stride[1:]),
                tuple(padding[1:]),
                tuple(dilation[1:]),
                ceil_mode,
            ),
        )
    within_positions = (*kernel[1:], *stride[1:], *padding[1:]) == (1, 1, 1, 1, 0, 0)
    if within_positions and lies == 'channels last':
        return _over_time(
            x,
            lambda lines: F.max_pool2d(
                lines, (kernel[0], 1), (stride[0], 1), (padding[0], 0), (dilation[0], 1), ceil_mode
            ),
        )
    return F.max_pool3d(x, tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), ceil_mode)


def _over_frames(x: Tensor, step: int, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply an operation on (N T, C, H, W) to every step-th frame of clips."""
    y = operation(as_frames(x[:, :, ::step]))
    return as_clips(y, -(-x.shape[2] // step))


def _over_time(x: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply an operation on (N, C, T, H W) to clips with channels innermost."""
    # Flattened behind the channels, a batch of one would get a stride that hides the layout.
    lines = x.movedim(1, -1).flatten(2, 3).movedim(-1, 1)
    y = operation(lines)
    return settled(y.view(*y.shape[:3], *x.shape[3:]))
