# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The report of the study: a page and a figure, made of the results alone."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from . import figure
from .budgets import BUDGETS
from .motion import PERMUTATIONS
from .statistics import Result, Results, Spread
from .study import DYNAMIC, PRUNED, RECIPE, STATIC, VARIANTS

load = Results.load
PAGE = 'results.md'
_MET = {True: 'met', False: '**not met**', None: 'not measured'}
_SHOW_MOTION = (DYNAMIC, 'temporal', 'no_motion', 'random')


def write(results: Results, path: Path) -> None:
    """Write a page such as ``results.md``, and its figure, ``results.png``, beside it.

    Args:
        results: Of a study.
        path: The page; its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.draw(points(results), line=STATIC).savefig(path.with_suffix('.png'), dpi=150)
    path.write_text(page(results, path.with_suffix('.png').name))


def points(results: Results) -> dict[str, list[figure.Point]]:
    """Compute and accuracy of the runs of every network, and of VA-RED2 set to other budgets."""
    found = {
        variant: [(results.gmacs(variant, seed), results.top1(variant, seed)) for seed in by_seed]
        for variant, by_seed in results.runs.items()
    }
    for budget in BUDGETS:
        if calibrated := results.calibrated(100 * budget):
            found[f'{DYNAMIC}, set to {100 * budget:g} %'] = [
                (c['gmacs'] + c['overhead_gmacs'], 100 * c['top1']) for c in calibrated
            ]
    return found


def page(results: Results, drawn: str = 'results.png') -> str:
    """The report as Markdown, of which ``drawn`` is the figure."""
    sections = (
        *(_introduction, _goals, functools.partial(_table, drawn=drawn), _equal_compute),
        *(_budgets, _controls, _choices, _motion, _again),
    )
    return '\n\n'.join('\n'.join(section(results)) for section in sections) + '\n'


def _introduction(results: Results) -> Iterator[str]:
    settings, static = results.settings, results.runs[STATIC]
    seeds = ', '.join(str(seed) for seed in static)
    top1 = results.spread('top1', STATIC).mean / 100
    repeats = settings.get('videos.repeats', 1.0)
    on = ' on clips that differ in speed' if repeats > 1 else ''
    if name := settings.get('videos.name'):
        on = f' on {name}'
    if (budget := results.budget(DYNAMIC)) is not None:
        on += f' at a budget of {budget:g} %'
    yield f'# Results of the study{on}'
    yield ''
    yield (
        'This page is written by `tools/study.py`; nothing in it is written by hand. Action '
        'detection has a page of its own, [results_detection.md](results_detection.md).'
    )
    yield ''
    if name:
        videos = f'Videos of {name} ('
    else:
        options = f' --repeats {repeats:g}' if repeats > 1 else ''
        seed = settings.get('videos.seed', '?')
        videos = f'Generated videos (tools/make_moving_shapes.py --seed {seed}{options}, '
    yield (
        f'{videos}{settings.get("videos.train", "?")} to train, '
        f'{settings.get("videos.test", "?")} to test); every network is trained with the seeds '
        f'{seeds}. Every number is that of the last epoch on the test set. Dynamic networks start '
        'from the static network of their seed, and so are trained for longer than that; the '
        'slimmed network and the one called `longer` are trained for as many epochs as both phases '
        'have. Where there are several seeds: mean ± standard deviation (each seed).'
    )
    if number := settings.get('videos.test'):
        error = 100 * math.sqrt(top1 * (1 - top1) / number)
        yield (
            f'With {number} test videos the standard error of one accuracy like that of the '
            f'static network is {error:.1f} points; smaller differences of single runs say little.'
        )
    runs = [run for by_seed in results.runs.values() for run in by_seed.values()]
    if any(key.startswith('version.') for run in runs for key in run.get('settings', ())):
        yield ''
        yield (
            '**The runs were made by different versions of PyTorch or of this package** '
            '(`--stale keep`), and may not be comparable.'
        )


def _goals(results: Results) -> Iterator[str]:
    yield '## Goals'
    yield ''
    yield 'A goal that names neither seeds nor an interval is judged by the mean over seeds.'
    yield ''
    yield from _rows(
        ('goal', '', 'found'), [(goal.text, _MET[goal.met], goal.found) for goal in results.goals()]
    )


def _table(results: Results, drawn: str) -> Iterator[str]:
    yield '## All networks'
    yield ''
    yield (
        '*Compute*: multiply-adds of the backbone for a clip, gates and cheap operations included, '
        'in % of the static network. *Convolutions*: executed ones only, in % of the network '
        'itself. *Over videos*: smallest and largest share of the convolutions in any run.'
    )
    yield ''
    header = (
        'network',
        '',
        'top-1 %',
        'compute %',
        'convolutions %',
        'over videos %',
        'GMACs',
        's',
    )
    yield from _rows(header, [_network(results, variant) for variant in results.runs])
    yield ''
    yield f'![Accuracy over compute]({drawn})'


def _network(results: Results, variant: str) -> tuple[str, ...]:
    runs = results.runs[variant].values()
    least = 100 * min(run['ratio']['min'] for run in runs)
    most = 100 * max(run['ratio']['max'] for run in runs)
    seconds = [run['seconds'] for run in runs if not run.get('resumed')]
    return (
        variant,
        VARIANTS[variant].about,
        results.spread('top1', variant).text(),
        results.spread('share', variant).text(),
        results.spread('ratio', variant).text(),
        f'{least:.1f} – {most:.1f}',
        f'{results.spread("gmacs", variant).mean:.4f}',
        f'{sum(seconds) / len(seconds):.0f}' if seconds else '–',
    )


def _equal_compute(results: Results) -> Iterator[str]:
    yield '## At equal compute'
    yield ''
    yield (
        'One network minus the other, in points. Intervals are those of the mean over seeds by a '
        'paired bootstrap over clips; of twenty, one leaves out the true value by chance. They do '
        'not cover what other seeds would change. The random policy draws its options so that its '
        'convolutions are expected to take what those of VA-RED² of the same seed took; it has no '
        'gates to pay for. The slimmed network has the width whose multiply-adds are nearest to '
        'those of VA-RED² with gates and cheap operations; widths are whole numbers. The fixed '
        'network starts from the static one as VA-RED² does, and is trained for as many epochs, '
        'pruned to one option a layer: that which suffices for a share of the training clips, the '
        'share with which compute is nearest to that of VA-RED² of the same seed on them. The '
        'pruned network is one training: gates learn until the budget has fallen, and then every '
        'layer keeps one option.'
    )
    yield ''
    pairs = [(DYNAMIC, other) for other in ('random', 'fixed', RECIPE, 'slimmed')]
    yield from _differences(results, [*pairs, (RECIPE, 'slimmed')])
    yield ''
    yield 'Minus the static network that they start from, and one trained for as many epochs:'
    yield ''
    pairs = [(name, other) for name in (DYNAMIC, RECIPE) for other in (STATIC, 'longer')]
    yield from _differences(results, pairs)


def _budgets(results: Results) -> Iterator[str]:
    yield '## Budgets'
    yield ''
    yield (
        'Networks trained to a budget, as the pruned one, beside VA-RED² of the table above, set '
        'to that budget without training (`tools/calibrate.py`): top-1 in %, and what their '
        'convolutions take, in %.'
    )
    yield ''
    rows = []
    trained = {results.budget(name): name for name in (RECIPE, *PRUNED) if name in results.runs}
    budgets = {100 * budget for budget in BUDGETS} | {b for b in trained if b is not None}
    for budget in sorted(budgets):
        cells = ['–'] * 4
        if name := trained.get(budget):
            cells[:2] = [results.spread(m, name).text() for m in ('top1', 'ratio')]
        if found := results.calibrated(budget):
            cells[2:] = [Spread.of([100 * c[m] for c in found]).text() for m in ('top1', 'ratio')]
        rows.append((f'{budget:g} %', *cells))
    yield from _rows(('budget', 'trained: top-1', 'takes', 'set to it: top-1', 'takes'), rows)


def _controls(results: Results) -> Iterator[str]:
    yield '## Adapting to the clip'
    yield ''
    yield (
        'Each network, tested with other gate outputs (`tools/test.py --controls`): '
        "accuracy in % with each clip's own, with another clip's, and with the mean of all "
        'clips; compute of their convolutions in %; and how far the compute of clips is apart from '
        'the 10th to the 90th percentile, in points. Another clip takes the compute of its own.'
    )
    yield ''
    measures: list[Callable[[Result], float]] = [
        lambda c: 100 * c['own']['top1'],
        lambda c: 100 * c['other']['top1'],
        lambda c: 100 * c['mean']['top1'],
        lambda c: 100 * c['own']['ratio'],
        lambda c: 100 * c['mean']['ratio'],
        lambda c: 100 * (c['spread'][1] - c['spread'][0]),
    ]
    rows = []
    for variant in results.runs:
        spreads = [results.control(variant, measure) for measure in measures]
        if variant != STATIC and spreads[0] is not None:
            rows.append((variant, *('–' if s is None else s.text() for s in spreads)))
    header = ('network', 'own', "another's", 'mean', 'compute', 'of the mean', 'apart')
    yield from _rows(header, rows or [('not measured', *('–',) * (len(header) - 1))])


def _choices(results: Results) -> Iterator[str]:
    compared = (STATIC, DYNAMIC, 'random', 'fixed', RECIPE, *PRUNED, 'slimmed', 'longer')
    others = [name for name in VARIANTS if name not in compared]
    yield '## Choices'
    yield ''
    yield 'Each minus VA-RED² as configs/study configures it, in points.'
    yield ''
    yield from _differences(results, [(other, DYNAMIC) for other in others])


def _differences(results: Results, pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    rows = []
    for pair in pairs:
        changes = [results.difference(m, *pair) for m in ('top1', 'share')]
        cells = [change.text(sign=True) for change in changes if change is not None]
        if len(cells) == len(changes):
            found = results.over_clips(*pair)
            between = f'{found["low"]:+.1f} to {found["high"]:+.1f}' if found else '–'
            rows.append((' − '.join(pair), cells[0], between, cells[1]))
    header = ('networks', 'top-1', '95 % interval', 'compute')
    yield from _rows(header, rows or [('not measured', *'–––')])


def _motion(results: Results) -> Iterator[str]:
    yield '## Still and moving clips'
    yield ''
    yield (
        'Share of frames computed, %, mean over dynamic layers and clips; p of a two-sided '
        f'permutation test of the means ({PERMUTATIONS} permutations). A still clip shows a shape '
        'at rest before a background at rest; *same classes* compares it with clips of the same '
        'classes, in which the background moves. The random policy is the control.'
    )
    yield ''
    rows = []
    for variant in _SHOW_MOTION:
        for seed, run in results.runs.get(variant, {}).items():
            for name, group in (run.get('motion') or {}).items():
                rows.append((variant, str(seed), name.replace('_', ' '), *_group(group)))
    header = (
        'network',
        'seed',
        'compared with',
        'still clips',
        'moving',
        'still %',
        'moving %',
        'p',
    )
    yield from _rows(header, rows)


def _group(group: dict[str, Any] | None) -> tuple[str, ...]:
    if group is None:
        return ('no such clips', *['–'] * 4)
    means = (f'{100 * group[name]:.1f}' for name in ('still', 'moving'))
    return (str(group['still_clips']), str(group['moving_clips']), *means, f'{group["p"]:.4f}')


def _again(results: Results) -> Iterator[str]:
    runs = [run for by_seed in results.runs.values() for run in by_seed.values()]
    places = sorted({_place(run['environment']) for run in runs})
    resumed = sum(bool(run.get('resumed')) for run in runs)
    yield '## To repeat it'
    yield ''
    yield '```bash'
    yield results.command
    yield '```'
    yield ''
    seconds, cpu = (sum(run[key] for run in runs) for key in ('seconds', 'cpu_seconds'))
    yield (
        f'{len(runs)} runs, {seconds / 60:.0f} minutes of training and testing in all, several '
        f'side by side ({cpu / 60:.0f} minutes of processor time); {resumed} of them were '
        f'interrupted and went on, the time before not counted. Made{_dates(runs)} on:'
    )
    yield ''
    yield from (f'- {place}' for place in places)


def _dates(runs: Sequence[Result]) -> str:
    """When runs ended, as far as they say so."""
    dates = sorted({run['date'] for run in runs if 'date' in run})
    return f' {" to ".join(dict.fromkeys((dates[0], dates[-1])))}' if dates else ''


def _place(environment: dict[str, Any]) -> str:
    versions = ('python', 'torch', 'mmengine', 'mmaction2', 'vared2_mmaction')
    known = ', '.join(f'{name} {environment.get(name, "?")}' for name in versions)
    return (
        f'{environment.get("device", "?")}, {environment.get("cores", "?")} cores, '
        f'{environment.get("threads", "?")} threads a run; {known}'
    )


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f'| {" | ".join(header)} |'
    yield f'|{"---|" * len(header)}'
    yield from (f'| {" | ".join(row)} |' for row in rows)
