# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""A network pruned to one option a layer: what one that adapts has to beat at the same compute."""

from collections.abc import Sequence
from typing import Any

import torch
from mmaction.registry import HOOKS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from commands.testing import training_clips
from vared2_mmaction.engine.network import network_of
from vared2_mmaction.models import dynamic_layers


@HOOKS.register_module()
class FixedOptionsHook(Hook):
    """Takes all options but one of each dimension out of use before training.

    Gates then decide nothing: the network computes the same for every clip.

    Args:
        options: p_c and p_t of every dynamic layer, in their order.
    """

    def __init__(self, options: Sequence[Sequence[int]]) -> None:
        self.options = options

    def before_train(self, runner: Runner) -> None:
        """Prune the network.

        Raises:
            ValueError: If it has another number of dynamic layers.
        """
        layers = dynamic_layers(network_of(runner))
        for layer, (channel, temporal) in zip(layers.values(), self.options, strict=True):
            layer.channel_options.use([channel])
            layer.temporal_options.use([temporal])


@torch.no_grad()
def usage_in_training(runner: Runner, cfg: Config) -> dict[str, Any]:
    """What training clips are given.

    Args:
        runner: Of the network, tested.
        cfg: Its config; training videos are read as test videos are, with nothing random.

    Returns:
        'ratio', the mean compute ratio, and 'usage': for every dynamic layer and dimension the
        share of clips that chose an option or a dearer one, for each option.
    """
    runner.model.eval()
    samples = [sample for batch in training_clips(cfg) for sample in runner.model.test_step(batch)]
    policies = torch.cat([sample.policy for sample in samples])
    options = torch.arange(int(policies.max()) + 1, device=policies.device)
    shares = (policies[..., None] <= options).double().mean(0)
    ratio = sum(sample.compute_ratio for sample in samples) / len(samples)
    return {'ratio': float(ratio), 'usage': shares.tolist()}


def fix_options(cfg: Config, options: Sequence[Sequence[int]]) -> None:
    """Let a dynamic config train the network of some options, without hooks of gates."""
    cfg.custom_imports.imports.append('studies.fixed')
    hook: dict[str, Any] = {'type': 'FixedOptionsHook', 'options': [list(o) for o in options]}
    cfg.custom_hooks = [hook]
