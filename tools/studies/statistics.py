# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What the results of the study say, in numbers."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from controls.measure import interval

from .study import DYNAMIC, PRUNED, RECIPE, STATIC, VARIANTS

Result = Mapping[str, Any]
SIGNIFICANT = 0.01
SAVES = 40.0
"""Share of the static multiply-adds that VA-RED² is to save, %, on average over seeds."""
MAY_LOSE = 0.5
"""Points of top-1 that it may lose, on average."""
BEATS = 2.0
"""Points of top-1 by which it is to beat others at equal compute, on average."""
ADAPTS = 1.0
"""Points of top-1 by which it is to beat the fixed network, which does not adapt to the clip."""
APART = 20.0
"""Points of compute that clips are to be apart, from the 10th to the 90th percentile."""
FEWER = 15.0
"""Points of frames that still clips are to need less than moving ones."""
MAY_MISS = 1.0
"""Points of compute by which the random policy may miss that of VA-RED²."""
OFF_BUDGET = 2.0
"""Points of compute by which a network may miss its budget."""
_ASKED = {RECIPE: 'The recipe (pruned)', DYNAMIC: 'VA-RED²'}
"""The variants that goals are asked of, and what they are called."""
_BUDGET = 'config.model.cls_head.loss_budget.budget'
_KEYS = (
    *('variant', 'seed', 'top1', 'ratio', 'gmacs', 'overhead_gmacs'),
    *('seconds', 'cpu_seconds', 'environment'),
)


class Spread(NamedTuple):
    """Values of several seeds."""

    mean: float
    std: float
    """Of a sample; not a number where there is one value."""
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> 'Spread':
        """Mean and standard deviation of values, of which there is at least one."""
        std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        return cls(float(np.mean(values)), std, tuple(values))

    def text(self, digits: int = 1, sign: bool = False) -> str:
        """Such as '85.0 ± 0.7 (84.3, 85.0, 85.7)'."""
        form = f'{"+" if sign else ""}.{digits}f'
        mean, *rounded = (round(v, digits) + 0.0 for v in (self.mean, *self.values))  # no -0.0
        values = ', '.join(f'{value:{form}}' for value in rounded)
        std = '' if math.isnan(self.std) else f' ± {self.std:.{digits}f} ({values})'
        return f'{mean:{form}}{std}'


class Goal(NamedTuple):
    """Something the study was to show."""

    text: str
    met: bool | None
    """None where it was not measured."""
    found: str


@dataclass(frozen=True)
class Results:
    """Results of a study by variant and seed; of variants and seeds only those that it has."""

    command: str
    settings: Mapping[str, Any]
    """Those that all runs share."""
    runs: Mapping[str, Mapping[int, Result]]

    @classmethod
    def load(cls, path: Path) -> 'Results':
        """Read what a study wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not the results of a study.
        """
        if not path.is_file():
            raise FileNotFoundError(f'{path}: no such file; tools/study.py --out writes it')
        try:
            found = json.loads(path.read_text())
            runs = list(found['runs'].values())
            command, settings = found['command'], found['settings']
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f'{path}: expected the results of tools/study.py: {error!r}'
            ) from error
        ordered: dict[str, dict[int, Result]] = {name: {} for name in VARIANTS}
        for run in runs:
            for key in _KEYS:
                if key not in run:
                    raise ValueError(f'{path}: a run lacks {key!r}')
            if run['variant'] not in VARIANTS:
                raise ValueError(f'{path}: variant {run["variant"]!r} is not of {list(VARIANTS)}')
            ordered[run['variant']][run['seed']] = run
        if not ordered[STATIC]:
            raise ValueError(f'{path}: expected at least one run of {STATIC!r}')
        return cls(command, settings, {name: by for name, by in ordered.items() if by})

    def top1(self, variant: str, seed: int) -> float:
        """Accuracy, %."""
        return 100 * self.runs[variant][seed]['top1']

    def gmacs(self, variant: str, seed: int) -> float:
        """Billions of multiply-adds of a clip, gates and cheap operations included."""
        run = self.runs[variant][seed]
        return run['gmacs']['mean'] + run['overhead_gmacs']

    def share(self, variant: str, seed: int) -> float:
        """Compute in % of the static network's, gates and cheap operations included."""
        return 100 * self.gmacs(variant, seed) / self.gmacs(STATIC, seed)

    def ratio(self, variant: str, seed: int) -> float:
        """Compute in % of the network's own convolutions, gates and cheap operations left out."""
        return 100 * self.runs[variant][seed]['ratio']['mean']

    def budget(self, variant: str) -> float | None:
        """The budget of a variant, in %; None where its results do not say it."""
        settings: Mapping[str, Any] = {}
        for run in self.runs.get(variant, {}).values():
            settings = run.get('settings', settings)
        return 100 * settings[_BUDGET] if _BUDGET in settings else None

    def calibrated(self, budget: float) -> list[Result]:
        """What VA-RED² did, set to another budget, in %, without training: of the seeds for which
        that was measured, what :func:`~.budgets.measure_budgets` returns."""
        of_runs = (run.get('calibrated') or () for run in self.runs.get(DYNAMIC, {}).values())
        return [c for points in of_runs for c in points if math.isclose(100 * c['budget'], budget)]

    def spread(self, measure: str, variant: str) -> Spread:
        """A measure, such as 'top1', over seeds."""
        return Spread.of([getattr(self, measure)(variant, seed) for seed in self.runs[variant]])

    def difference(self, measure: str, variant: str, other: str) -> Spread | None:
        """A measure of one variant minus that of another, seed by seed."""
        mine, theirs = self.runs.get(variant, {}), self.runs.get(other, {})
        if not (seeds := [seed for seed in mine if seed in theirs]):
            return None
        take = getattr(self, measure)
        return Spread.of([take(variant, seed) - take(other, seed) for seed in seeds])

    def goals(self) -> list[Goal]:
        """What was to be shown, and whether it was."""
        longer = 'one that is trained for as long as both phases'
        return [
            *(self._saves(name) for name in _ASKED),
            *(
                self._keeps_accuracy(name, STATIC, 'the static network that it starts from')
                for name in _ASKED
            ),
            *(self._keeps_accuracy(name, 'longer', longer) for name in _ASKED),
            self._beats(DYNAMIC, 'random', 'a random policy'),
            *(self._beats(name, 'slimmed', 'a slimmed static network') for name in _ASKED),
            self._adapts(),
            self._clips_are_apart(),
            self._same_compute(),
            self._follows_motion(),
            self._keeps_budgets(),
        ]

    def _saves(self, variant: str) -> Goal:
        name = _ASKED[variant]
        text = f'{name} saves at least {SAVES:g} % of the static multiply-adds, all included'
        if variant not in self.runs:
            return Goal(text, None, 'not measured')
        share = self.spread('share', variant)
        return Goal(text, share.mean <= 100 - SAVES, f'takes {share.text()} %')

    def _keeps_budgets(self) -> Goal:
        text = (
            'Convolutions of VA-RED² and of the pruned networks take what their budget says '
            f'within {OFF_BUDGET:g} points, for every seed'
        )
        misses = {
            name: Spread.of([v - budget for v in self.spread('ratio', name).values])
            for name in (DYNAMIC, RECIPE, *PRUNED)
            if (budget := self.budget(name)) is not None
        }
        if not misses:
            return Goal(text, None, 'not measured')
        met = all(abs(v) <= OFF_BUDGET for miss in misses.values() for v in miss.values)
        said = '; '.join(f'{name} {miss.text(sign=True)}' for name, miss in misses.items())
        return Goal(text, met, f'{said} points')

    def _keeps_accuracy(self, variant: str, other: str, what: str) -> Goal:
        text = f'{_ASKED[variant]} is at most {MAY_LOSE:g} points of top-1 below {what}'
        change = self.difference('top1', variant, other)
        if change is None:
            return Goal(text, None, 'not measured')
        return Goal(text, change.mean >= -MAY_LOSE, f'{change.text(sign=True)} points')

    def _beats(self, variant: str, other: str, what: str) -> Goal:
        text = f'{_ASKED[variant]} is at least {BEATS:g} points above {what} at equal compute'
        change = self.difference('top1', variant, other)
        if change is None:
            return Goal(text, None, 'not measured')
        return Goal(text, change.mean >= BEATS, f'{change.text(sign=True)} points')

    def over_clips(self, variant: str, other: str) -> dict[str, float] | None:
        """Accuracy of one variant minus that of another, in points: mean over seeds and clips, and
        its 95 % interval over clips; None where it is not known which clips were correct."""
        mine, theirs = self.runs.get(variant, {}), self.runs.get(other, {})
        pairs = [(mine[seed], theirs[seed]) for seed in mine if seed in theirs]
        if not pairs or any('correct' not in run for pair in pairs for run in pair):
            return None
        each = [[np.array(list(run['correct']), dtype=float) for run in pair] for pair in pairs]
        differences = np.mean([a - b for a, b in each], axis=0)
        return {key: 100 * value for key, value in interval(differences).items()}

    def control(self, variant: str, value: Callable[[Result], float]) -> Spread | None:
        """Something of the controls of a variant over seeds."""
        runs = self.runs.get(variant, {}).values()
        found = [controls for run in runs if (controls := run.get('controls'))]
        return Spread.of([value(c) for c in found]) if found else None

    def _adapts(self) -> Goal:
        text = (
            f'At equal compute VA-RED² is at least {ADAPTS:g} point above a network pruned to the '
            'same options for all clips, with a 95 % interval over clips above 0'
        )
        change, found = self.difference('top1', DYNAMIC, 'fixed'), self.over_clips(DYNAMIC, 'fixed')
        share = self.difference('share', DYNAMIC, 'fixed')
        if change is None or found is None or share is None:
            return Goal(text, None, 'not measured')
        return Goal(
            text,
            change.mean >= ADAPTS and found['low'] > 0,
            f'{change.text(sign=True)} points, interval {found["low"]:+.1f} to '
            f'{found["high"]:+.1f}, at {share.mean:+.1f} points of compute',
        )

    def _clips_are_apart(self) -> Goal:
        text = (
            f'Compute of clips of VA-RED² from the 10th to the 90th percentile is at least '
            f'{APART:g} points apart'
        )
        apart = self.control(DYNAMIC, lambda c: 100 * (c['spread'][1] - c['spread'][0]))
        if apart is None:
            return Goal(text, None, 'not measured')
        return Goal(text, apart.mean >= APART, f'{apart.text()} points')

    def _same_compute(self) -> Goal:
        text = (
            f'The random policy takes the compute of VA-RED² within {MAY_MISS:g} point, '
            'convolutions only, for every seed'
        )
        miss = self.difference('ratio', 'random', DYNAMIC)
        if miss is None:
            return Goal(text, None, 'not measured')
        met = max(map(abs, miss.values)) <= MAY_MISS
        return Goal(text, met, f'{miss.text(2, sign=True)} points')

    def _follows_motion(self) -> Goal:
        text = (
            f'VA-RED² computes at least {FEWER:g} points fewer frames for still clips than for '
            f'moving ones (p < {SIGNIFICANT:g}), for every seed'
        )
        runs = self.runs.get(DYNAMIC, {}).values()
        groups = [g for run in runs if (g := (run.get('motion') or {}).get('all')) is not None]
        if not groups or len(groups) < len(runs):
            return Goal(text, None, 'not measured')
        fewer = [100 * (g['moving'] - g['still']) >= FEWER and g['p'] < SIGNIFICANT for g in groups]
        change = Spread.of([100 * (g['still'] - g['moving']) for g in groups])
        p_values = ', '.join(f'{g["p"]:.4f}' for g in groups)
        return Goal(text, all(fewer), f'{change.text(sign=True)} points; p {p_values}')
