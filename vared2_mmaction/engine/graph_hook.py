# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Train as CUDA graphs."""

from typing import Any

import torch
from mmaction.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..deploy.training_graphs import TrainingGraphs
from .network import network_of


@HOOKS.register_module()
class CUDAGraphHook(Hook):
    """Replay the backbone's forward and backward passes as CUDA graphs.

    Dynamic layers consist of many small operations, which the host takes several times as long to
    launch as the GPU to execute. As graphs they are two launches; see
    :class:`~vared2_mmaction.deploy.training_graphs.TrainingGraphs` for what is replayed and when.
    Stock backbones gain as well. Graphs keep the memory of one batch's activations.

    Without a GPU, or with a backbone that MMEngine compiles, the hook says so and does nothing.
    """

    def before_train(self, runner: Runner) -> None:
        """Put graphs in the place of the backbone's forward."""
        backbone: Any = network_of(runner).backbone
        self._backbone: Any = None
        if not torch.cuda.is_available():
            runner.logger.info('CUDAGraphHook: there is no GPU; training runs as ever')
        elif runner.cfg.get('compile') or 'forward' in backbone.__dict__:
            runner.logger.info('CUDAGraphHook: the backbone is compiled already; nothing to do')
        else:
            self._backbone = backbone
            backbone.forward = TrainingGraphs(backbone)

    def after_train(self, runner: Runner) -> None:
        """Give the backbone its forward, and the graphs' memory, back."""
        if self._backbone is not None:
            self._backbone.forward.release()
            del self._backbone.forward
            self._backbone = None
