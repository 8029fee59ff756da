# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The computation-budget loss."""

import torch
from torch import Tensor, nn

from ..errors import AT_LEAST_0, FLAG, Expected, check

_EXPECTED = {
    'loss_weight': AT_LEAST_0,
    'budget': Expected(float, 'a share of the static compute in [0, 1)', lambda x: 0 <= x < 1),
    'correct_only': FLAG,
    'per_clip': FLAG,
}


class ComputationBudgetLoss(nn.Module):
    """``loss_weight * mean_n mu(n) * max(rho(n) - budget, 0)^2``.

    After the efficiency loss of VA-RED2 (Pan et al., ICLR 2021), which is the case budget = 0.

    With ``per_clip=False``, rho is the mean over the clips whose mu is 1: the budget holds for
    these clips together, so that some may take what others do not need.

    Args:
        loss_weight: Weight lambda beside the classification loss.
        budget: Share of the static network's multiply-adds, in [0, 1), under which a clip costs
            nothing.
        correct_only: Whether mu is 1 for correctly classified clips only, or for all.
        per_clip: Whether the budget holds for each clip, or for the mean over those of a batch.
    """

    def __init__(
        self,
        loss_weight: float = 0.8,
        budget: float = 0.0,
        correct_only: bool = True,
        per_clip: bool = True,
    ) -> None:
        super().__init__()
        given = (loss_weight, budget, correct_only, per_clip)
        for (key, expected), value in zip(_EXPECTED.items(), given, strict=True):
            check(f'loss_budget.{key}', value, expected)
        self.loss_weight = loss_weight
        self.budget = budget
        self.correct_only = correct_only
        self.per_clip = per_clip

    def forward(self, ratio: Tensor, correct: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            ratio: Compute ratio rho of each clip, (N,).
            correct: Whether each clip is classified correctly, (N,).

        Returns:
            The loss, a scalar in float32.
        """
        mu = correct.to(ratio.dtype) if self.correct_only else torch.ones_like(ratio)
        if not self.per_clip:
            ratio = (mu * ratio).sum() / mu.sum().clamp(min=1)
        excess = (ratio - self.budget).clamp(min=0).square()
        return self.loss_weight * (mu * excess).mean().float()
