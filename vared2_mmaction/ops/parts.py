# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Many small tensors from few allocations."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor


def parts_like(
    tensors: Sequence[Tensor], make: Callable[..., Tensor], multiple: int = 1
) -> Iterator[Tensor]:
    """Tensors of the shapes of others; those of a type and device are parts of one.

    Args:
        tensors: The others.
        make: Makes what they are parts of: ``torch.empty`` or ``torch.zeros``.
        multiple: Each begins at an element whose number is a multiple of this.
    """
    sizes: dict[tuple[Any, ...], list[int]] = {}
    for t in tensors:
        found = sizes.setdefault((t.dtype, t.device), [])
        found += (t.numel(), gap) if (gap := -t.numel() % multiple) else (t.numel(),)
    parts = {
        (dtype, device): iter(make(sum(size), dtype=dtype, device=device).split(size))
        for (dtype, device), size in sizes.items()
    }
    for t in tensors:
        own = parts[t.dtype, t.device]
        part = next(own)
        if -t.numel() % multiple:
            next(own)
        yield part if t.dim() == 1 else part.view(t.shape)
