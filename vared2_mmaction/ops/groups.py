# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Which clips of a batch are executed together."""

from typing import NamedTuple

import torch

from .gate import Modulation


class Group(NamedTuple):
    """Clips, and the options that are on among them, dearest first."""

    rows: list[int]
    channel: list[int]
    temporal: list[int]


def group_by_policy(modulation: Modulation, together: bool) -> list[Group]:
    """Group clips whose dearest options are the same.

    Args:
        modulation: Weights of the options of N clips.
        together: Put all clips into one group instead.

    Raises:
        FloatingPointError: If a clip has no option on, because its weights are not finite.
    """
    channels = modulation.channel.shape[1]
    weights = torch.cat(modulation, 1).tolist()  # the one time the host waits for the device
    members: dict[tuple[int, int] | None, tuple[list[int], set[int], set[int]]] = {}
    for row, v in enumerate(weights):
        channel, temporal = (
            [i for i, weight in enumerate(part) if weight > 0]
            for part in (v[:channels], v[channels:])
        )
        if not channel or not temporal:
            raise FloatingPointError(f'the weights of the gate are not finite: {v}')
        policy = None if together else (channel[0], temporal[0])
        rows, all_channel, all_temporal = members.setdefault(policy, ([], set(), set()))
        rows.append(row)
        all_channel.update(channel)
        all_temporal.update(temporal)
    if not members:  # no clips: any policy will do
        return [Group([], [0], [0])]
    return [Group(rows, sorted(c), sorted(t)) for rows, c, t in members.values()]
