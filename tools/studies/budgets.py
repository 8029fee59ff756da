# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Budgets: networks trained to others, and one that is set to them without training."""

from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from commands.testing import training_clips
from controls.measure import measure
from vared2_mmaction.budget import Calibration
from vared2_mmaction.engine.network import network_of

BUDGETS = (0.3, 0.6, 0.8)
"""Compute ratios, beside that of the configs."""
CLIPS = 256
"""Training clips to calibrate on."""


def measure_budgets(runner: Runner, cfg: Config) -> list[dict[str, Any]]:
    """Set a network to ``BUDGETS`` without training, and test it at each, by its definition.

    Args:
        runner: Of the network, tested; its network is another one afterwards.
        cfg: Its config; training videos are read as test videos are, with nothing random.

    Returns:
        For each budget that the network can have 'budget', and accuracy and compute as
        :func:`~controls.measure.measure` returns them.
    """
    calibration = Calibration(network_of(runner), training_clips(cfg, CLIPS))
    found = []
    for budget in BUDGETS:
        if calibration.cheapest <= budget <= calibration.dearest:
            calibration.set(budget)
            found.append({'budget': budget, **measure(runner)})
    return found
