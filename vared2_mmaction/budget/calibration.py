# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Move the gates of a network to a compute ratio, without training."""

from collections.abc import Iterable, Iterator
from functools import reduce
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import SHARE, check
from ..models.policy import dynamic_layers
from .observe import OFF, ON, Observation, Thresholds, observe
from .passes import backbone_to_calibrate, estimate_batch_norm

_LEVEL = np.arctanh(0.05)
"""Pre-activation, at least, of an option that is opened for all clips."""
_MARGIN = 0.99
_REACH = 0.005
"""How far beyond the ends of the path a ratio may be."""
_LEAST_ERROR = 1e-6
_RATIO = SHARE._replace(words='a share of the static compute in (0, 1]', holds=lambda x: 0 < x <= 1)


class _Step(NamedTuple):
    """An option's threshold rises, and the compute of no clip does."""

    layer: str
    column: int
    before: float
    after: float


class Calibration:
    """One network at any budget between its cheapest and its dearest.

    Budgets lie on one path, which depends on the network and the clips of ``loader`` only, and on
    which options close one after the other while the budget falls. **No clip, seen or not, ever
    gets more compute from a smaller budget.** Gates see features, which change with what earlier
    layers compute, so an option may close only while all gates that still choose are those of
    earlier layers or of its own, whose features therefore stay; later layers compute the same for
    every clip. On the way down the path

    1. all layers compute their dearest options, and from the first layer to the last are handed
       over to their gates: as they were trained, all choose;
    2. from the last layer to the first, they get the cheapest option that a clip of the loader was
       given, for all clips;
    3. options close layer by layer, those first whose rebuilding errs least for what it saves.

    Within a step, the option closes for those clips first whose gate wants it least. Closed options
    are out of use, and a bias is where an option is open for all: what is saved is an ordinary
    checkpoint of the same config. BatchNorm is estimated again for each budget.

    Args:
        model: A recognizer, detector or backbone with dynamic layers and soft modulation gates.
        loader: Batches of clips, as large as in training, without a need for labels, which are gone
            through several times; the same ones in the same order. See
            :func:`~vared2_mmaction.budget.passes.run_batches`.
        max_ratio: Share of the static compute that no clip, seen or not, may exceed; options are
            taken out of use, those first whose rebuilding errs least for what it saves.

    Raises:
        ValueError: If the network cannot be calibrated, or no policy keeps ``max_ratio``.
    """

    def __init__(self, model: nn.Module, loader: Iterable[Any], max_ratio: float = 1.0) -> None:
        check('max_ratio', max_ratio, _RATIO)
        self._model, self._loader = model, loader
        self._layers = dynamic_layers(backbone_to_calibrate(model))
        self._gates = {
            name: [p.detach().clone() for p in layer.gate.fc2.parameters()]
            for name, layer in self._layers.items()
        }
        self._in_use = {name: layer.in_use for name, layer in self._layers.items()}
        seen = observe(model, loader, errors=True)
        self._means = {name: layer.u.mean(0) for name, layer in seen.layers.items()}
        self._levels = {
            name: np.maximum(np.maximum(layer.u, 0).mean(0), _LEVEL)
            for name, layer in seen.layers.items()
        }
        self._path, learned = self._make_path(seen, max_ratio)
        self._set(learned)
        estimate_batch_norm(model, loader)
        observed = observe(model, loader)
        # Of what chooses, features are those of the gates as they were trained.
        states = accumulate(self._path, _taken, initial=self._start)
        self._means_of_states = [float(observed.ratio(state).mean()) for state in states]

    @property
    def dearest(self) -> float:
        """Largest mean compute ratio over the clips."""
        return self._means_of_states[0]

    @property
    def cheapest(self) -> float:
        """Smallest mean compute ratio over the clips."""
        return self._means_of_states[-1]

    def set(self, ratio: float) -> float:
        """Set the network to a budget, in place.

        Args:
            ratio: Mean compute ratio of the clips.

        Returns:
            The ratio that the clips have; as near as one of them can bring it.

        Raises:
            ValueError: If the ratio is out of reach.
        """
        self.check(ratio)
        taken = sum(mean > ratio for mean in self._means_of_states[1:])
        state = reduce(_taken, self._path[:taken], self._start)
        if taken < len(self._path):
            state = self._part_of_step(state, self._path[taken], ratio)
        self._set(state)
        estimate_batch_norm(self._model, self._loader)
        observed = observe(self._model, self._loader)
        return float(observed.ratio(observed.zeros()).mean())

    def check(self, ratio: float) -> None:
        """Raise a ValueError if a ratio is out of reach."""
        check('ratio', ratio, _RATIO)
        if not self.cheapest - _REACH <= ratio <= self.dearest + _REACH:
            fixed = all(len(o) == 1 for layer in self._layers.values() for o in layer.in_use)
            raise ValueError(
                f'ratio={ratio}: out of reach without training: expected a share from '
                f'{self.cheapest:.3f}, the cheapest, to {self.dearest:.3f}, the dearest'
                + ('; options are fixed, no gate chooses' if fixed else '')
            )

    def _part_of_step(self, state: Thresholds, step: _Step, ratio: float) -> Thresholds:
        """Take a step as far as brings clips nearest to a ratio; the gate is left as it was to ask
        it, which changes later layers only."""
        self._set(_with_threshold(state, step, 0.0))
        estimate_batch_norm(self._model, self._loader)
        self._asked = observe(self._model, self._loader)
        u = np.unique(self._asked.layers[step.layer].u[:, step.column])
        between = (u[1:] + u[:-1]) / 2
        inside = between[(between > step.before) & (between < step.after)]
        states = [_with_threshold(state, step, t) for t in (step.before, *inside, step.after)]
        off = [abs(float(self._asked.ratio(one).mean()) - ratio) for one in states]
        return states[int(np.argmin(off))]

    def _make_path(self, seen: Observation, max_ratio: float) -> tuple[list[_Step], Thresholds]:
        """All steps, and the thresholds at which all gates choose."""
        start = {name: np.full_like(layer.u[0], ON) for name, layer in seen.layers.items()}
        closings = _closings(seen, start)
        while seen.ratio(start).max() > max_ratio:
            if (step := next(closings, None)) is None:
                raise ValueError(
                    f'max_ratio={max_ratio}: out of reach: expected at least '
                    f'{seen.ratio(start).max():.3f}, the cheapest policy'
                )
            start = _taken(start, step)
        self._start = start
        choosing = _columns_that_choose(seen, start)
        handed_over = [_Step(*where, ON, 0.0) for where in choosing]
        learned = reduce(_taken, handed_over, start)
        layers = list(seen.layers)
        choosing.sort(key=lambda where: (-layers.index(where[0]), where[1]))
        fixed = [_Step(*where, 0.0, OFF) for where in choosing]
        floors = reduce(_taken, fixed, learned)
        return [*handed_over, *fixed, *_closings(seen, floors)], learned

    @torch.no_grad()
    def _set(self, state: Thresholds) -> None:
        """Put thresholds into gates and options in use."""
        for name, thresholds in state.items():
            layer = self._layers[name]
            weight, bias = layer.gate.fc2.weight, layer.gate.fc2.bias
            for parameter, trained in zip((weight, bias), self._gates[name], strict=True):
                parameter.copy_(trained)
            first = 0
            parts = layer.channel_options, layer.temporal_options
            for part, in_use in zip(parts, self._in_use[name], strict=True):
                part.use([o for o in in_use if thresholds[first + o] != OFF])
                open_for_all = [o for o in part.in_use if thresholds[first + o] == ON]
                if open_for_all:  # it decides, whatever cheaper ones are
                    self._open(name, first + open_for_all[0], weight, bias)
                first += len(part.used)
            for column in np.flatnonzero(np.isfinite(thresholds) & (thresholds != 0)):
                above = self._asked.layers[name].u[:, column] - thresholds[column]
                # As much weight as where it is open for all, or a rest of it counts for nothing.
                scale = max(1.0, self._levels[name][column] / above[above > 0].mean())
                weight[column] *= scale
                bias[column] = scale * (bias[column] - thresholds[column])

    def _open(self, name: str, column: int, weight: Tensor, bias: Tensor) -> None:
        """Let an option be open whatever its gate sees: hidden features are in (-1, 1)."""
        level, row = self._levels[name][column], weight[column]
        about = self._means[name][column] - bias[column].item()
        spread = row.abs().sum().item() + about
        scale = min(1.0, _MARGIN * level / max(spread, 1e-12))
        row *= scale
        bias[column] = level - scale * about


def set_budget(
    model: nn.Module, ratio: float, loader: Iterable[Any], max_ratio: float = 1.0
) -> float:
    """Move the gates of a trained network to a mean compute ratio, in place, without training.

    Calls with other ratios, each from the same weights, give no clip more for a smaller ratio; see
    :class:`Calibration`, which sets one network to several.

    Args:
        model: A recognizer, detector or backbone with dynamic layers and soft modulation gates.
        ratio: Mean compute ratio over the loader's clips.
        loader: Batches of clips, as large as in training, without a need for labels.
        max_ratio: Share of the static compute that no clip may exceed.

    Returns:
        The ratio that the clips have; as near as one of them can bring it.

    Raises:
        ValueError: If a ratio is out of reach, or the network cannot be calibrated.

    Examples:
        >>> set_budget(model, 0.4, runner.val_dataloader)
    """
    return Calibration(model, loader, max_ratio).set(ratio)


def _with_threshold(state: Thresholds, step: _Step, threshold: float) -> Thresholds:
    thresholds = state[step.layer].copy()
    thresholds[step.column] = threshold
    return {**state, step.layer: thresholds}


def _taken(state: Thresholds, step: _Step) -> Thresholds:
    """Thresholds after a step."""
    return _with_threshold(state, step, step.after)


def _columns_that_choose(seen: Observation, start: Thresholds) -> list[tuple[str, int]]:
    """Options that gates open for some clips only: all dearer ones than the cheapest decision."""
    found = []
    for name, layer in seen.layers.items():
        trained = np.where(start[name] == OFF, OFF, 0.0)
        for dimension, decided in enumerate(layer.decided(trained)):
            for option, column in zip(
                layer.options[dimension], layer.columns(dimension), strict=True
            ):
                if option < decided.max() and start[name][column] != OFF:
                    found.append((name, column))
    return found


def _closings(seen: Observation, state: Thresholds) -> Iterator[_Step]:
    """Close options that are open for all, first where it errs least for what it saves."""
    while True:
        best: tuple[float, _Step] | None = None
        for name, layer in seen.layers.items():
            before = layer.decided(state[name])
            for dimension, decided in enumerate(before):
                options, option = layer.options[dimension], int(decided[0])
                if option == options[-1]:
                    continue
                column = layer.columns(dimension)[options.index(option)]
                step = _Step(name, column, ON, OFF)
                closed = _taken(state, step)[name]
                saved = ((layer.cost(state[name]) - layer.cost(closed)) / seen.static).mean()
                errors = layer.errors[dimension]
                error = errors[int(layer.decided(closed)[dimension][0])] - errors[option]
                price = max(error, _LEAST_ERROR) / saved
                if best is None or price < best[0]:
                    best = price, step
        if best is None:
            return
        yield best[1]
        state = _taken(state, best[1])
