# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What the gates do while a network trains, for the visualizer's backends and the log."""

import functools
from typing import Any

import torch
from mmaction.registry import HOOKS
from mmengine.hooks import Hook, LoggerHook
from mmengine.runner import Runner
from torch import Tensor, nn

from ..errors import FLAG, check
from ..models import SoftModulationGateNeck, dynamic_layers
from .graph_hook import CUDAGraphHook
from .network import ITERATIONS, batches_of_epoch, budgets_of, network_of
from .usage import Usage, name_layers


@HOOKS.register_module()
class PolicyUsageHook(Hook):
    """Write how much each option is used to the visualizer's backends; name gates that are stuck.

    At every interval, and for what is left at the end of an epoch, over all training clips since
    the last time and of all processes:

    - ``usage/compute_ratio_mean``, ``_min``, ``_max``: compute ratio of the clips;
    - ``usage/channel_0``, ``usage/temporal_1``, ...: share of clips with an option, mean over the
      layers that have a choice in that dimension;
    - ``usage/LAYER/channel_0``, ...: the same of one layer.

    They go to the backends alone, not to the console. The loss terms get there through MMEngine's
    ``LoggerHook``. The host waits for the device at the interval only.

    A gate that gave the same answer for every clip of a period is named in one warning. One that
    computed everything, which is how gates start, is named only where the budget loss had its full
    weight and budget in the whole period: before, nothing asked it to close. Layers that have one
    option are never named, nor are gates that ``FreezeGatesHook`` keeps as they are. A gate whose
    weights are not finite raises ``FloatingPointError`` at the interval.

    Args:
        interval: Iterations between two writings; None takes that of the ``LoggerHook``.
        period: Iterations after which stuck gates are looked for; None takes the batches of the
            training data loader, which is an epoch.
        per_layer: Whether to write the shares of every layer beside their means.
    """

    def __init__(
        self, interval: int | None = None, period: int | None = None, per_layer: bool = True
    ) -> None:
        iterations = ITERATIONS._replace(or_none=True)
        check('PolicyUsageHook: interval', interval, iterations)
        check('PolicyUsageHook: period', period, iterations)
        check('PolicyUsageHook: per_layer', per_layer, FLAG)
        self.interval = interval
        self.period = period
        self.per_layer = per_layer
        self._handles: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        """Listen to the neck and the dynamic layers.

        Raises:
            ValueError: If the model does not have one SoftModulationGateNeck, or no interval is
                given and the runner has no LoggerHook.
        """
        self.after_train(runner)  # of a training that an error ended
        model = network_of(runner)
        replayed = any(isinstance(hook, CUDAGraphHook) for hook in runner.hooks)
        if torch.cuda.is_available() and not replayed and not runner.cfg.get('compile'):
            runner.logger.info(
                'PolicyUsageHook: the backbone runs operation by operation, for which a GPU waits; '
                "custom_hooks with dict(type='CUDAGraphHook') let it be replayed, compile=True "
                'compiles it'
            )
        self._every = self.interval or _logger_interval(runner)
        self._in_period = self.period or batches_of_epoch(runner)
        self._losses = budgets_of(model)
        layers = dynamic_layers(model)
        # A short clip leaves a layer fewer temporal options than it was made with.
        self._options = dict.fromkeys(layers, (1, 1))
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._logged = self._watched = Usage.none(len(layers))
        self._begin_period()
        self._handles = [_neck(model).register_forward_hook(self._keep_decisions)]
        for name, layer in layers.items():
            note = functools.partial(self._keep_options, name)
            self._handles.append(layer.register_forward_hook(note))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Write at the interval, and look for stuck gates at the end of a period."""
        self._steps += 1
        self._pressed &= all(
            loss.loss_weight >= weight > 0 and loss.budget <= budget
            for loss, weight, budget in self._losses
        )
        if write := self.every_n_inner_iters(batch_idx, self._every):
            self._fetch()
            self._write(runner, step=runner.iter + 1)
        if self._steps == self._in_period:
            if not write:
                self._fetch()
            self._warn(runner)
            self._begin_period()

    def after_train_epoch(self, runner: Runner) -> None:
        """Write what is left of the epoch."""
        self._fetch()
        if self._logged.clips:
            self._write(runner, step=runner.iter)

    def after_train(self, runner: Runner) -> None:
        """Listen no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _keep_decisions(self, neck: nn.Module, args: Any, output: Any) -> None:
        if neck.training and torch.is_grad_enabled():  # neither validation nor BatchNorm statistics
            modulated = output[0]
            if modulated.policy.shape[1] != len(self._options):
                raise ValueError(
                    f'PolicyUsageHook: {modulated.policy.shape[1]} layers decided, but the model '
                    f'has {len(self._options)} dynamic ones: expected one dynamic backbone'
                )
            self._pending.append((modulated.policy, modulated.ratio.detach()))

    def _keep_options(self, name: str, layer: Any, args: Any, output: Tensor) -> None:
        if layer.training:
            channel, temporal = self._options[name]
            _, frames = layer.options_of(layer.to_clips(args[0]).shape[2])
            self._options[name] = max(channel, layer.num_options[0]), max(temporal, len(frames))

    def _fetch(self) -> None:
        """Count the pending answers of all processes."""
        if not self._pending:
            return
        policies, ratios = map(torch.cat, zip(*self._pending, strict=True))
        broken = (policies < 0).any(-1).any(0).tolist()
        for name, not_finite in zip(self._options, broken, strict=True):
            if not_finite:
                raise FloatingPointError(f'{name}: the weights of the gate are not finite')
        usage = Usage.count(policies, ratios).over_processes()
        self._pending = []
        self._logged += usage
        self._watched += usage

    def _write(self, runner: Runner, step: int) -> None:
        scalars = self._logged.scalars(self._options, self.per_layer)
        runner.visualizer.add_scalars(scalars, step=step)
        self._logged = Usage.none(len(self._options))

    def _begin_period(self) -> None:
        self._steps = 0
        self._pressed = bool(self._losses)
        self._watched = Usage.none(len(self._options))

    def _warn(self, runner: Runner) -> None:
        stuck = self._watched.same_answers(self._options)
        if not self._pressed:
            stuck = {layer: answer for layer, answer in stuck.items() if answer != (0, 0)}
        layers = dynamic_layers(network_of(runner))
        learning = [
            layer
            for layer in self._options
            if layers[layer].gate.training and max(map(len, layers[layer].in_use)) > 1
        ]
        stuck = {layer: stuck[layer] for layer in learning if layer in stuck}
        if not stuck:
            return
        choosing = [layer for layer in learning if max(self._options[layer]) > 1]
        # Iterations tell a warning from the last one: MMEngine's logger drops what it has logged.
        runner.logger.warning(
            f'PolicyUsageHook: {len(stuck)} of {len(choosing)} gates are stuck: they gave the same '
            f'answer for all {self._watched.clips} clips of iterations '
            f'{runner.iter + 2 - self._steps} to {runner.iter + 1}: {_by_answer(stuck, choosing)}'
        )


def _by_answer(stuck: dict[str, tuple[int, int]], among: list[str]) -> str:
    by_answer = {}
    for answer in sorted(set(stuck.values())):
        everything = '' if any(answer) else ' (all computed)'
        said = f'p_c={answer[0]}, p_t={answer[1]}{everything} at'
        by_answer[said] = [layer for layer in stuck if stuck[layer] == answer]
    return name_layers(by_answer, among)


def _logger_interval(runner: Runner) -> int:
    for hook in runner.hooks:
        if isinstance(hook, LoggerHook):
            return hook.interval
    raise ValueError(
        'PolicyUsageHook: interval is missing: the runner has no LoggerHook to take it from'
    )


def _neck(model: nn.Module) -> SoftModulationGateNeck:
    necks = [module for module in model.modules() if isinstance(module, SoftModulationGateNeck)]
    if len(necks) != 1:
        raise ValueError(
            f'PolicyUsageHook: {type(model).__name__} has {len(necks)} SoftModulationGateNecks; '
            "expected one, neck=dict(type='SoftModulationGateNeck')"
        )
    return necks[0]
