# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Phases of the computation-budget loss; MMEngine schedules optimizer parameters only."""

from mmaction.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..models import ComputationBudgetLoss


@HOOKS.register_module()
class BudgetScheduleHook(Hook):
    """Train without the budget loss first, then raise it to its weight.

    The factor depends on the epoch alone, so that a resumed run goes on as it would have.

    Args:
        begin: Epoch from which the budget loss counts.
        ramp: Number of epochs over which its weight then rises linearly; 0 switches it on.
    """

    def __init__(self, begin: int = 0, ramp: int = 0) -> None:
        if begin < 0 or ramp < 0:
            raise ValueError(f'begin={begin!r}, ramp={ramp!r}: expected epochs, 0 or more')
        self.begin = begin
        self.ramp = ramp

    def before_run(self, runner: Runner) -> None:
        """Remember the configured weights."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.losses = [
            (loss, loss.loss_weight)
            for loss in model.modules()
            if isinstance(loss, ComputationBudgetLoss)
        ]
        if not self.losses:
            raise ValueError(
                'BudgetScheduleHook: the model has no ComputationBudgetLoss; expected a VARED2 head'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Set the weight for this epoch."""
        for loss, weight in self.losses:
            loss.loss_weight = weight * self.factor(runner.epoch)

    def after_run(self, runner: Runner) -> None:
        """Give the configured weights back."""
        for loss, weight in self.losses:
            loss.loss_weight = weight

    def factor(self, epoch: int) -> float:
        """Share of the weight that counts in an epoch, counted from 0."""
        if epoch < self.begin:
            return 0.0
        return min(1.0, (epoch - self.begin + 1) / (self.ramp + 1))
