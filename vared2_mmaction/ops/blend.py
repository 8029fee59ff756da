# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""From the weights V of a gate to the shares that options have in the output."""

from collections.abc import Sequence

import torch
from torch import Tensor


def shares(v: Tensor, saturation: float) -> Tensor:
    """Break a stick of length one: each option takes ``min(V / saturation, 1)`` of what dearer
    ones left, and all shares are scaled to sum to one.

    An option that takes all leaves the cheaper ones nothing. They stay open, but blending begins,
    and costs accuracy and time, only where a gate is about to close the dearer option.

    Args:
        v: Weights of the options, (N, options), dearest first; zero is off.
        saturation: Weight from which on an option takes all that is left. With a large one the
            shares are V over its sum.

    Returns:
        Shares, (N, options).
    """
    taken = (v / saturation).clamp(max=1)
    left, parts = torch.ones_like(taken[:, :1]), []
    for i in range(v.shape[1]):
        part = taken[:, i : i + 1]
        parts.append(part * left)
        left = left - parts[-1]
    stick = torch.cat(parts, 1)
    return stick / stick.sum(1, keepdim=True)


def sharing(v: Sequence[float], saturation: float | None) -> list[int]:
    """Options that are on and have a share, dearest first.

    Args:
        v: Weights of the options of one clip.
        saturation: As in :func:`shares`; None where V are the shares.
    """
    found = []
    for option, weight in enumerate(v):
        if weight > 0:
            found.append(option)
            if saturation is not None and weight >= saturation:
                break
    return found
