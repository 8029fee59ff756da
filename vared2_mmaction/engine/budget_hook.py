# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Phases of the computation-budget loss; MMEngine schedules optimizer parameters only."""

from typing import Any

from mmaction.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..errors import check
from .network import EPOCH, budgets_of, check_begin, epochs_passed, network_of


@HOOKS.register_module()
class BudgetScheduleHook(Hook):
    """Train without the budget loss first, then raise it to its weight, or lower the budget.

    A budget that falls closes options one after the other, those first that the classification
    misses least. One that is low from the start pushes at all gates alike, and many close together.

    Weight and budget depend on the epoch alone, so that a resumed run goes on as it would have.

    Args:
        begin: Epoch from which the budget loss counts.
        ramp: Number of epochs over which its weight then rises linearly; 0 switches it on.
        fall: Number of epochs over which the budget falls linearly, iteration by iteration, from 1
            to its own value; 0 leaves it there.
    """

    def __init__(self, begin: float = 0, ramp: float = 0, fall: float = 0) -> None:
        for key, value in {'begin': begin, 'ramp': ramp, 'fall': fall}.items():
            check(f'BudgetScheduleHook: {key}', value, EPOCH)
        self.begin = begin
        self.ramp = ramp
        self.fall = fall
        self.losses: list = []

    def before_train(self, runner: Runner) -> None:
        """Remember the configured weights and budgets.

        Raises:
            ValueError: If there is no budget loss, or training ends before ``begin``.
        """
        self.after_train(runner)  # of a training that an error ended
        check_begin(self, runner)
        self.losses = budgets_of(network_of(runner))
        if not self.losses:
            raise ValueError(
                'BudgetScheduleHook: the model has no ComputationBudgetLoss; expected a VARED2 head'
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Set weight and budget for this iteration."""
        epoch = epochs_passed(runner)
        for loss, weight, budget in self.losses:
            loss.loss_weight = weight * self.factor(int(epoch))
            loss.budget = 1 - (1 - budget) * self.fallen(epoch)

    def after_train(self, runner: Runner) -> None:
        """Give the configured weights and budgets back."""
        for loss, weight, budget in self.losses:
            loss.loss_weight, loss.budget = weight, budget

    def factor(self, epoch: int) -> float:
        """Share of the weight that counts in an epoch, counted from 0."""
        if epoch < self.begin:
            return 0.0
        return min(1.0, (epoch - self.begin + 1) / (self.ramp + 1))

    def fallen(self, epoch: float) -> float:
        """Share of its way that the budget has fallen when so many epochs have passed."""
        return min(1.0, max(0.0, (epoch - self.begin) / self.fall)) if self.fall else 1.0
