# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""How maps lie in memory: channels innermost, in whole vectors of 16 bytes.

Numbers of channels such as 83 or 921 are filled up with zeros, without which tensor cores read no
vectors. A tensor that such zeros are known to follow carries a mark, so that the next layer reads
them with it.
"""

import torch
from torch import Tensor

_MARK = '_vared2_followed_by_zeros'


def vector(dtype: torch.dtype) -> int:
    """Elements of 16 bytes."""
    return 16 // dtype.itemsize


def filled_up(channels: int, dtype: torch.dtype) -> int:
    """Channels and the zeros behind them, a multiple of a vector."""
    return -(-channels // vector(dtype)) * vector(dtype)


def memory_of(x: Tensor, clip_rows: int, dtype: torch.dtype) -> Tensor:
    """Maps as they are to lie, a view where they do.

    Args:
        x: (N, C, T, H, W), or (N T, C, H, W).
        clip_rows: T for frames; see :class:`~vared2_mmaction.executors.base.LayerRecord`.
        dtype: Type that is wanted.

    Returns:
        (N, T, H, W, C'), contiguous but for zeros behind the channels.
    """
    memory = x.movedim(1, -1)
    if x.dim() == 4:
        memory = memory.unflatten(0, (-1, clip_rows))
    channels = x.shape[1]
    width = filled_up(channels, dtype)
    if width == channels:
        memory = memory.to(dtype).contiguous()
    elif x.dtype == dtype and getattr(x, _MARK, 0) == width:
        memory = memory.as_strided((*memory.shape[:-1], width), memory.stride())
    else:
        copy = memory.new_zeros((*memory.shape[:-1], width), dtype=dtype)
        copy[..., :channels].copy_(memory)
        memory = copy
    return memory.view(memory.shape)  # strides of dimensions of size one are settled


def maps_of(memory: Tensor, channels: int, rank: int) -> Tensor:
    """What :func:`memory_of` was told of: the first channels, as clips (N, C, T, H, W) of rank 3,
    or frames (N T, C, H, W) of rank 2."""
    if rank == 2:
        memory = memory.flatten(0, 1)
    maps = memory.movedim(-1, 1)
    if channels == maps.shape[1]:
        return maps
    maps = maps[:, :channels]
    setattr(maps, _MARK, memory.shape[-1])
    return maps
