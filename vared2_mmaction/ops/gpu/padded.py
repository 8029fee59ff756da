# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Maps whose channels are followed by zeros in memory, so that kernels read whole vectors."""

from torch import Tensor

_MULTIPLE, _FEW = 16, 8
_MARK = '_vared2_followed_by_zeros'


def padded_channels(channels: int) -> int:
    """Channels and the zeros behind them: a multiple of 16, or 8."""
    return _FEW if channels <= _FEW else -(-channels // _MULTIPLE) * _MULTIPLE


def empty_maps(like: Tensor, channels: int, sizes: tuple[int, ...], zeros: bool = True) -> Tensor:
    """Maps (N, C, T, H, W) with channels innermost, and the same step between all positions.

    Args:
        like: Tells the number of clips, type and device.
        channels: C.
        sizes: T, H and W.
        zeros: Whether to write the zeros; otherwise who writes the maps writes those too.
    """
    memory = like.new_empty(len(like), *sizes, padded_channels(channels))
    if zeros and memory.shape[-1] > channels:
        memory[..., channels:].zero_()
    return narrowed(memory.movedim(-1, 1), channels)


def narrowed(x: Tensor, channels: int) -> Tensor:
    """The first channels of maps with channels innermost, whose others are zeros."""
    if channels == x.shape[1]:
        return x
    return _marked(x[:, :channels])


def widened(x: Tensor) -> Tensor:
    """Maps (N, C, T, H, W) with the zeros behind their channels, which are written if missing."""
    channels, *sizes = x.shape[1:]
    if (all_channels := padded_channels(channels)) == channels:
        return x
    if not is_followed(x):
        x = empty_maps(x, channels, tuple(sizes)).copy_(x)
    return x.as_strided((len(x), all_channels, *sizes), x.stride(), x.storage_offset())


def is_followed(x: Tensor) -> bool:
    """Whether maps are known to be followed by zeros, unless they need none."""
    return getattr(x, _MARK, False)


def extent(x: Tensor) -> int:
    """Elements of the memory from the first of a tensor to the last."""
    steps = zip(x.shape, x.stride(), strict=True)
    return 1 + sum((size - 1) * step for size, step in steps if size > 1)


def hand_over(x: Tensor, view: Tensor) -> Tensor:
    """The view, which is known to be followed by zeros where its base is."""
    return _marked(view) if is_followed(x) else view


def _marked(x: Tensor) -> Tensor:
    setattr(x, _MARK, True)
    return x
