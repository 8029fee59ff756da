# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""From the weights V of a gate to the shares that options have in the output."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def shares(v: Tensor, saturation: float) -> Tensor:
    """Weights scaled to sum to one, or the parts of a stick that options break off in turn.

    With a finite saturation each option takes ``min(V / saturation, 1)`` of what dearer ones left,
    before all are scaled. One that takes all leaves the cheaper ones nothing: they stay open, but
    blending, and its time, begin only where a gate is about to close the dearer option.

    Args:
        v: Weights of the options, (..., options), dearest first; zero is off.
        saturation: Weight from which on an option takes all that is left. Infinity breaks no
            stick: the shares are V over its sum.

    Returns:
        Shares, (..., options).
    """
    if saturation == math.inf:
        return v / v.sum(-1, keepdim=True)
    taken = (v / saturation).clamp(max=1)
    left, parts = torch.ones_like(taken[..., :1]), []
    for i in range(v.shape[-1]):
        part = taken[..., i : i + 1]
        parts.append(part * left)
        left = left - parts[-1]
    stick = torch.cat(parts, -1)
    return stick / stick.sum(-1, keepdim=True)


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
