# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Time networks in turn, and sum up what was timed."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from .batches import Batch

WARMUP = 2
"""Runs of each network that are not counted."""
NOTHING_TO_REALISE = 0.95
"""Share of the multiply-adds from which on there is no saving to compare the time with."""
RIVALS = ('unhelped',)
"""Networks that ours is compared with beside ``stock``."""


@dataclass
class Network:
    """One of the networks, ready to run."""

    model: nn.Module
    call: Callable[[], object]
    """Runs the network once."""
    context: Callable[[], AbstractContextManager]
    """What the call is to run under."""
    batches: Sequence[Batch]
    """What the calls take, one after the other and then from the start."""
    optimizer: torch.optim.Optimizer | None = None


def time_in_turn(
    networks: Sequence[Network],
    runs: int,
    device: str = 'cpu',
    progress: Callable[[], None] = lambda: None,
) -> list[list[float]]:
    """Time networks in turn, in an order that rotates from run to run.

    Args:
        networks: The networks. Their contexts are opened outside of what is timed.
        runs: How often; ``WARMUP`` runs before them are not counted.
        device: Where the networks run.
        progress: Called after every run of all networks.

    Returns:
        Seconds of every run, for each network.
    """
    seconds: list[list[float]] = [[] for _ in networks]
    wait = torch.cuda.synchronize if device == 'cuda' else lambda: None
    for run in range(-WARMUP, runs):
        for turn in range(len(networks)):
            i = (run + turn) % len(networks)
            with networks[i].context():
                wait()
                start = time.perf_counter()
                networks[i].call()
                wait()
                taken = time.perf_counter() - start
            if run >= 0:
                seconds[i].append(taken)
        progress()
    return seconds


def summarise(seconds: Mapping[str, Sequence[float]], share: float) -> dict[str, Any]:
    """Ratios and medians of the times of a row.

    Args:
        seconds: Times of each network, run by run.
        share: Executed over static multiply-adds.
    """
    ours = np.array(seconds['ours'])
    ratios = {name: ours / np.array(times) for name, times in seconds.items()}
    low, middle, high = np.percentile(ratios['stock'], (10, 50, 90)).tolist()
    rivals = {
        f'time_ratio_{name}': float(np.median(ratios[name])) if name in ratios else None
        for name in RIVALS
    }
    return {
        'time_ratio': middle,
        'time_ratio_p10': low,
        'time_ratio_p90': high,
        **rivals,
        'static_ms': 1000 * float(np.median(seconds['stock'])),
        'dynamic_ms': 1000 * float(np.median(ours)),
        'realised': realised(middle, share),
    }


def realised(time_ratio: float, macs_ratio: float) -> float | None:
    """Saved time over saved multiply-adds; None where there is nothing to realise."""
    return None if macs_ratio >= NOTHING_TO_REALISE else (1 - time_ratio) / (1 - macs_ratio)
