# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""A last phase of training, in which gates stay as they are."""

from typing import Any

import torch
from mmaction.registry import HOOKS
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from ..errors import check
from ..models import ComputationBudgetLoss, dynamic_layers
from .network import EPOCH, check_begin, epochs_passed, network_of

OFF_BUDGET = 0.02
"""How far the compute ratio may be from the budget before it is said."""


@HOOKS.register_module()
class FreezeGatesHook(Hook):
    """Keep all gates as they are from an epoch on, so that the network settles at their policy.

    An option that a gate has closed for a clip gets no gradient and seldom opens again, while noise
    goes on closing others: without such a phase, compute falls under its budget, and the accuracy
    with it, for as long as training lasts.

    Gates still see features, which still change, so that a clip's policy may. If the compute ratio,
    mean over the training clips of an epoch, is then off the budget by more than ``OFF_BUDGET``,
    one warning says so. A budget of 0, which nothing reaches, is none.

    Args:
        begin: Epoch from which gates are frozen, counted from 0.
    """

    def __init__(self, begin: float) -> None:
        check('FreezeGatesHook: begin', begin, EPOCH)
        self.begin = begin

    def before_train(self, runner: Runner) -> None:
        """Find the gates.

        Raises:
            ValueError: If the model has none, or training ends before ``begin``.
        """
        check_begin(self, runner)
        model = network_of(runner)
        self.gates: list[nn.Module] = [layer.gate for layer in dynamic_layers(model).values()]
        if not self.gates:
            raise ValueError('FreezeGatesHook: the model has no dynamic layer')
        self.frozen: list[tuple[Tensor, Tensor]] = []
        # As configured: BudgetScheduleHook changes budgets later.
        self._budgets = [
            loss.budget
            for loss in model.modules()
            if isinstance(loss, ComputationBudgetLoss) and loss.budget > 0 < loss.loss_weight
        ]
        self._ratios: list[Tensor] = []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Note the weights of the gates, and stop their normalisation from following the data."""
        if epochs_passed(runner) < self.begin:
            return
        for gate in self.gates:  # the loop has called the model's train() since the epoch began
            gate.eval()
        if not self.frozen:
            parameters = (p for gate in self.gates for p in gate.parameters())
            self.frozen = [(p, p.detach().clone()) for p in parameters]

    @torch.no_grad()
    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Take back what the optimizer did to the gates, and watch their compute.

        Parameters that need no gradient any more would confuse ``DistributedDataParallel``, and
        some optimizers move parameters whose gradient is zero.
        """
        for parameter, value in self.frozen:
            parameter.copy_(value)
        if self.frozen and self._budgets:
            self._ratios.append(outputs['compute_ratio'])
            if len(self._ratios) == len(runner.train_dataloader):
                self._compare_with_budget(runner)

    def _compare_with_budget(self, runner: Runner) -> None:
        steps, ratio = len(self._ratios), torch.stack(self._ratios).mean()
        self._ratios = []
        dist.all_reduce(ratio, 'mean')
        budget = self._budgets[0]
        if abs(ratio.item() - budget) > OFF_BUDGET:
            self._budgets = []  # once is enough
            runner.logger.warning(
                f'FreezeGatesHook: frozen gates are off the budget {budget}: compute ratio '
                f'{ratio.item():.3f} of the clips of iterations {runner.iter + 2 - steps} to '
                f'{runner.iter + 1}. Features still move under them: freeze later '
                f'(begin={self.begin} now), or let the learning rate fall further before'
            )
