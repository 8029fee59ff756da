# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Make a static network's options ready to be closed, without training."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..models.policy import dynamic_layers
from .passes import backbone_to_calibrate, evaluating, run_batches

_DOMINANT, _FALL = 0.9, 0.01
"""Weight of the dearest option, and of each option against the one before."""
_LEANING = 0.05
"""Pre-activation by which clips may differ."""


def start_from_static(model: nn.Module, loader: Iterable[Any]) -> None:
    """Prepare a dynamic network whose stock parameters alone were loaded, in place.

    Cheap operations get the scales and shifts, map by map, with which they rebuild best what their
    layer computes: least squares over the clips, in closed form. Gates let the dearest option count
    alone for all clips, and where it closes the next one: an option that no training has mixed
    with others only disturbs those. Then :class:`~vared2_mmaction.budget.Calibration` closes
    options, those first whose rebuilding errs least for what it saves.

    Args:
        model: A recognizer, detector or backbone with dynamic layers.
        loader: Batches of clips, without a need for labels.

    Raises:
        ValueError: If there is no dynamic layer, or no clip.
    """
    layers = dynamic_layers(backbone_to_calibrate(model))
    sums: dict[tuple[str, int, int], Any] = defaultdict(float)

    def look(name: str, layer: Any, args: Any, output: Tensor) -> None:
        z = layer.convolve(layer.to_clips(args[0]))
        for dimension, option, target, source in _pairs(layer, z):
            sums[name, dimension, option] += _moments(target, source)

    with ExitStack() as stack, evaluating(model):
        for name, layer in layers.items():
            stack.enter_context(layer.register_forward_hook(partial(look, name)))
            _let_dearest_dominate(layer)
        run_batches(model, loader)
        for (name, dimension, option), moments in sums.items():
            part = (layers[name].channel_options, layers[name].temporal_options)[dimension]
            _fit(part.operation(option), moments)


def _let_dearest_dominate(layer: Any) -> None:
    """Weights of options that fall so fast that the dearest one which is on counts alone."""
    rows = layer.gate.fc2.weight
    rows *= _LEANING / rows.abs().sum(1, keepdim=True).clamp(min=1e-12)
    weights = [_DOMINANT * _FALL**i for number in layer.num_options for i in range(number)]
    layer.gate.fc2.bias.copy_(torch.atanh(torch.tensor(weights)))


def _pairs(layer: Any, z: Tensor) -> Iterator[tuple[int, int, list[Tensor], list[Tensor]]]:
    """Dimension and option, and for each of its maps in their order what is to be rebuilt and from
    what, (N, maps, frames, H, W)."""
    for option, k in enumerate(layer.channel_options.kept[1:], 1):
        sources = torch.arange(k, z.shape[1], device=z.device) % k
        yield 0, option, [z[:, k:]], [z[:, sources]]
    for option in range(1, layer.num_options[1]):
        step = 2**option
        targets = [z[:, :, offset::step] for offset in range(1, step)]
        yield 1, option, targets, [z[:, :, ::step][:, :, : t.shape[2]] for t in targets]


def _moments(targets: list[Tensor], sources: list[Tensor]) -> np.ndarray:
    """Number of values, sums of source and target, of squared source, and of the product; of each
    map, (5, maps)."""
    rows = []
    for y, x in zip(targets, sources, strict=True):
        of_each = (torch.ones_like(x), x, y, x * x, x * y)
        sums = [values.sum((0, 2, 3, 4), dtype=torch.float64) for values in of_each]
        rows.append(torch.stack(sums))
    return torch.cat(rows, 1).cpu().numpy()


def _fit(operation: Any, moments: np.ndarray) -> None:
    """Least squares of ``target = scale * source + shift``; a map that never varies is copied."""
    number, x, y, xx, xy = moments
    n = np.maximum(number, 1)
    variance = xx / n - (x / n) ** 2
    varies = variance > 1e-8 * np.maximum(xx / n, 1e-30)
    scale = np.where(varies, (xy / n - x * y / n**2) / np.where(varies, variance, 1), 1.0)
    shift = np.where(number > 0, (y - scale * x) / n, 0.0)
    operation.weight.copy_(torch.from_numpy(scale))
    operation.bias.copy_(torch.from_numpy(shift))
