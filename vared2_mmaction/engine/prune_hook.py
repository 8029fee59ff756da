# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Take options that no clip uses out of a network while it trains."""

from typing import Any

import torch
from mmaction.registry import HOOKS
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from ..errors import Expected, check
from ..models import dynamic_layers
from ..models.dynamize import DynamicBackbone
from ..ops.options import MAX_OPTIONS
from .network import EPOCH, ITERATIONS, batches_of_epoch, epochs_passed, network_of, networks_of
from .usage import DIMENSIONS, name_layers

_SHARE = Expected(float, 'a share of clips in [0, 1)', lambda share: 0 <= share < 1)


@HOOKS.register_module()
class PruneOptionsHook(Hook):
    """Prune options that no clip has used for a while: layers no longer compute or mix them.

    An option is used by a clip for which its weight is above zero. Every ``unused_for`` iterations
    the options of each layer are looked at that were on for no training clip, of all processes,
    since the last time. They are taken out of use and named in the log; a layer keeps at least the
    option that most clips used. Options that clips are too short for are left alone.

    What is left computes what it did with these options closed, and costs less: in training because
    the convolution computes the dearest option in use only. Options in use are kept in checkpoints.
    A compiled network is compiled anew.

    Args:
        unused_for: Iterations for which an option has to be unused.
        share: Options that fewer than this share of the clips have used are pruned too, which
            changes what these clips get.
        begin: Epochs that pass before usage is looked at; gates start with all options on.
    """

    def __init__(self, unused_for: int, share: float = 0.0, begin: float = 0) -> None:
        check('PruneOptionsHook: unused_for', unused_for, ITERATIONS)
        check('PruneOptionsHook: share', share, _SHARE)
        check('PruneOptionsHook: begin', begin, EPOCH)
        self.unused_for = unused_for
        self.share = share
        self.begin = begin

    def before_train(self, runner: Runner) -> None:
        """Find the backbones.

        Raises:
            ValueError: If the model has no dynamic backbone.
        """
        modules = network_of(runner).modules()
        self._backbones: list[Any] = [m for m in modules if isinstance(m, DynamicBackbone)]
        if not self._backbones:
            raise ValueError('PruneOptionsHook: the model has no dynamic backbone')
        if self.begin * batches_of_epoch(runner) + self.unused_for > runner.max_iters:
            runner.logger.warning('PruneOptionsHook: training ends before anything is pruned')
        # Each of them the same all along, so that what was captured with it goes on.
        self._counts = [
            torch.zeros(
                (len(backbone.dynamic_layers), len(DIMENSIONS), MAX_OPTIONS + 1),
                dtype=torch.int64,
                device=next(backbone.parameters()).device,
            )
            for backbone in self._backbones
        ]
        self._start()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Begin to count."""
        if self._steps == 0 and epochs_passed(runner) >= self.begin:
            for backbone, counts in zip(self._backbones, self._counts, strict=True):
                backbone.option_counts = counts.zero_()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Prune at the end of each ``unused_for`` iterations."""
        if self._backbones[0].option_counts is None:
            return
        self._steps += 1
        if self._steps < self.unused_for:
            return
        for backbone in self._backbones:
            counts = backbone.option_counts
            dist.all_reduce(counts, 'sum')
            self._prune(runner, backbone, counts.cpu())
        self._start()

    def after_train(self, runner: Runner) -> None:
        """Count no more."""
        self._start()

    def _start(self) -> None:
        self._steps = 0
        for backbone in self._backbones:
            backbone.option_counts = None

    def _prune(self, runner: Runner, backbone: Any, counts: Tensor) -> None:
        layers, networks = dynamic_layers(backbone), networks_of(runner)
        where = next(n for n, m in network_of(runner).named_modules() if m is backbone)
        pruned: dict[str, list[str]] = {}
        for name, of_layer in zip(backbone.dynamic_layers, counts, strict=True):
            used = zip(DIMENSIONS, layers[name].in_use, strict=True)
            for d, (dimension, in_use) in enumerate(used):
                left = _left(in_use, of_layer[d].tolist(), self.share)
                if left == in_use:
                    continue
                gone = ', '.join(str(option) for option in in_use if option not in left)
                pruned.setdefault(f'{dimension} options {gone} of', []).append(name)
                for network in networks:
                    copy = network.get_submodule(where).get_submodule(name)
                    getattr(copy, f'{dimension}_options').use(left)
        if pruned:
            torch.compiler.reset()  # or compiling anew would count against its limit
            runner.logger.info(
                f'PruneOptionsHook: unused in the {self.unused_for} iterations up to '
                f'{runner.iter + 1}, and no longer computed: '
                f'{name_layers(pruned, backbone.dynamic_layers)}'
            )


def _left(in_use: tuple[int, ...], counts: list[int], share: float) -> tuple[int, ...]:
    """Options that stay in use.

    Args:
        in_use: Options, dearest first.
        counts: For how many clips each was on, and last the number of clips.
        share: Options that fewer than this share of the clips used go.
    """
    *of_options, clips = counts
    used = {o: n for o, n in zip(in_use, of_options, strict=False) if n and n >= share * clips}
    if used or not clips:
        return tuple(used) or in_use
    return (max(zip(of_options, in_use, strict=False))[1],)
