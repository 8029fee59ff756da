# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""A last phase of training, in which gates stay as they are."""

from typing import Any

import torch
from mmaction.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from ..budget import shift_gates
from .network import batches_of_epoch, epochs_passed, networks_of
from .newest_clips import SettlingHook

OFF_BUDGET = 0.02
"""How far the compute ratio may be from the budget before it is said."""


@HOOKS.register_module()
class FreezeGatesHook(SettlingHook):
    """Keep all gates as they are from an epoch on, so that the network settles at their policy.

    An option that a gate has closed for a clip gets no gradient and seldom opens again, while noise
    goes on closing others: without such a phase, compute falls under its budget, and the accuracy
    with it, for as long as training lasts.

    Compute moves all the same: the budget loss only pushes from above, gates no longer see
    BatchNorm of their batch, and features still change under them. So the gates are brought to the
    budget when they are frozen, and at the end of every epoch from then on, before the network is
    validated and saved: the newest training clips go through the network in evaluation mode, and
    one number, the same for all gates, is added to their biases. See
    :func:`~vared2_mmaction.budget.shift_gates`. A budget of 0, which nothing reaches, is none.

    If the compute ratio is off the budget by more than ``OFF_BUDGET`` all the same, one warning
    says so.

    Args:
        begin: Epoch from which gates are frozen, counted from 0.
        clips: Training clips of each process that the budget is kept for; they stay in memory.
    """

    def before_train(self, runner: Runner) -> None:
        """Find gates and budget; errors are those of every such hook."""
        super().before_train(runner)
        self.gates: list[nn.Module] = [layer.gate for layer in self._layers.values()]
        self.frozen: list[tuple[Tensor, Tensor]] = []
        self._said = False

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Note the weights of the gates, and stop their normalisation from following the data."""
        if epochs_passed(runner) >= self.begin:
            for gate in self.gates:  # the loop has called the model's train() since the epoch began
                gate.eval()
            if not self.frozen:
                self._freeze(runner)
        if self._budget is not None:
            self._newest.keep(data_batch, batches_of_epoch(runner))

    @torch.no_grad()
    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Take back what the optimizer did to the gates, and keep them at the budget.

        Parameters that need no gradient any more would confuse ``DistributedDataParallel``, and
        some optimizers move parameters whose gradient is zero.
        """
        for parameter, value in self.frozen:
            parameter.copy_(value)
        last = runner.iter + 1 == runner.max_iters
        # An epoch that is resumed halfway begins again, and its batches are counted anew.
        if self.frozen and (last or (batch_idx + 1) % batches_of_epoch(runner) == 0):
            self._freeze(runner)

    def _freeze(self, runner: Runner) -> None:
        """Bring gates to the budget, and note their weights."""
        self._keep_budget(runner)
        parameters = (p for gate in self.gates for p in gate.parameters())
        self.frozen = [(p, p.detach().clone()) for p in parameters]

    def _keep_budget(self, runner: Runner) -> None:
        """Bring gates, and their moving averages, to the budget, if there are clips enough."""
        seen, budget = len(self._newest), self._budget
        if budget is None or not self._newest.suffice(batches_of_epoch(runner)):
            return
        for model in networks_of(runner):
            before, ratio = shift_gates(model, self._newest, budget)
        runner.logger.info(
            f'FreezeGatesHook: compute ratio of the newest {seen} clips {before:.3f}, brought to '
            f'{ratio:.3f}; the budget is {budget}'
        )
        if abs(ratio - budget) > OFF_BUDGET and not self._said:
            self._said = True
            runner.logger.warning(
                f'FreezeGatesHook: gates are off the budget {budget}: compute ratio {ratio:.3f} is '
                'as near as one shift of all gates brings it: too many of them say the same of '
                'every clip. Let the budget fall over more epochs'
            )
