# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""From learned gates to one network of the same options for every clip."""

from typing import Any

import torch
from mmaction.registry import HOOKS
from mmengine.runner import Runner

from ..budget import common_options
from ..budget.passes import backbone_to_calibrate
from ..models import dynamic_layers
from .freeze_hook import OFF_BUDGET
from .network import batches_of_epoch, epochs_passed, network_of, networks_of
from .newest_clips import NewestClips, SettlingHook
from .usage import DIMENSIONS, name_layers


@HOOKS.register_module()
class FixOptionsHook(SettlingHook):
    """Leave every layer one option of each dimension at an epoch, and train on with these.

    Until then gates learn which layers can do with less; what is left is what they want for the
    typical clip, at the budget of the loss, see :func:`~vared2_mmaction.budget.common_options`. The
    other options are taken out of use: no gate is asked any more, nothing is mixed, and the budget
    holds for every clip.

    docs/training.md says how such networks compare with those whose gates adapt to the clip.
    Options in use are kept in checkpoints, so that a training that is resumed, a test or a
    fine-tuning goes on with them.

    Args:
        begin: Epoch at which options are fixed, counted from 0; at the end of the budget's fall.
        clips: Newest training clips of each process that gates are asked about; they stay in memory
            until then.
    """

    def before_train(self, runner: Runner) -> None:
        """Find layers and budget; a ValueError if there is none, or as of every such hook."""
        super().before_train(runner)
        if self._budget is None:
            raise ValueError(
                'FixOptionsHook: the model has no ComputationBudgetLoss with a weight and a budget '
                'above 0, which says how many options to leave'
            )
        self._fixed = all(len(o) == 1 for layer in self._layers.values() for o in layer.in_use)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep the newest clips; fix options when it is time."""
        if self._fixed:
            return
        epoch = batches_of_epoch(runner)
        self._newest.keep(data_batch, epoch)
        if epochs_passed(runner) >= self.begin and self._newest.suffice(epoch):
            self._fix(runner)

    def after_train(self, runner: Runner) -> None:
        """Let go of the clips."""
        self._newest = NewestClips(self.clips)

    def _fix(self, runner: Runner) -> None:
        options, ratio = common_options(network_of(runner), self._newest, self._budget)
        for model in networks_of(runner):
            layers = dynamic_layers(backbone_to_calibrate(model))
            for name, chosen in options.items():
                for dimension, option in zip(DIMENSIONS, chosen, strict=True):
                    getattr(layers[name], f'{dimension}_options').use([option])
        torch.compiler.reset()  # or compiling anew would count against its limit
        left = {
            f'{dimension} option {option} of': [n for n, o in options.items() if o[d] == option]
            for d, dimension in enumerate(DIMENSIONS)
            for option in sorted({chosen[d] for chosen in options.values()})
        }
        runner.logger.info(
            f'FixOptionsHook: compute ratio {ratio:.3f} of every clip from now on; the budget is '
            f'{self._budget}; {name_layers(left, [*options])}'
        )
        if abs(ratio - self._budget) > OFF_BUDGET:
            runner.logger.warning(
                f'FixOptionsHook: compute ratio {ratio:.3f} is as near to the budget '
                f'{self._budget} as the options in use come'
            )
        self._fixed, self._newest = True, NewestClips(self.clips)
