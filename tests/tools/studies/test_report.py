# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The report says what the results say."""

import copy
import json
import re

import numpy as np
import pytest

from studies import report
from studies.statistics import Results, Spread

from ...loading import load_tool

SEEDS = (0, 1)
GOALS = 14
BUDGET = 'config.model.cls_head.loss_budget.budget'
# Variant: top-1, GMACs of the convolutions, and of gates and cheap operations; of each seed.
NUMBERS = {
    'static': ((0.88, 0.10, 0.0), (0.90, 0.10, 0.0)),
    'vared2': ((0.875, 0.055, 0.002), (0.895, 0.059, 0.002)),
    'random': ((0.80, 0.0554, 0.001), (0.86, 0.0593, 0.001)),
    'pruned': ((0.885, 0.055, 0.001), (0.905, 0.059, 0.001)),
    'pruned_60': ((0.88, 0.059, 0.002), (0.89, 0.061, 0.002)),
    'fixed': ((0.84, 0.054, 0.002), (0.86, 0.058, 0.002)),
    'slimmed': ((0.82, 0.056, 0.0), (0.85, 0.060, 0.0)),
    'longer': ((0.877, 0.10, 0.0), (0.897, 0.10, 0.0)),
    'no_motion': ((0.89, 0.06, 0.002), (0.87, 0.05, 0.002)),
}


def run(variant, seed, top1, gmacs, overhead):
    dynamic = variant not in ('static', 'slimmed', 'longer')
    ratio = gmacs / 0.1 if dynamic else 1.0
    group = {'still_clips': 75, 'moving_clips': 485, 'still': 0.5, 'moving': 0.75, 'p': 0.0001}
    means = {'top1': top1, 'ratio': ratio}
    controls = {
        'own': means,
        'other': {**means, 'top1': top1 - 0.02},
        'mean': {'top1': top1 - 0.01, 'ratio': ratio + 0.03},
        'spread': [ratio - 0.1, ratio + 0.15],
    }
    return {
        'variant': variant,
        'seed': seed,
        'top1': top1,
        'correct': '1' * round(200 * top1) + '0' * round(200 * (1 - top1)),
        'controls': controls if dynamic else None,
        'ratio': {'mean': ratio, 'min': ratio - 0.05 * dynamic, 'max': ratio, 'std': 0.0},
        'gmacs': {'mean': gmacs, 'min': gmacs, 'max': gmacs, 'std': 0.0},
        'overhead_gmacs': overhead,
        'motion': {'all': group, 'same_classes': None} if dynamic else None,
        'seconds': 120.0,
        'cpu_seconds': 90.0,
        'resumed': False,
        'date': f'2026-11-2{seed}',
        'calibrated': [
            {'budget': 0.6, 'top1': top1 - 0.1, 'ratio': 0.603, 'gmacs': 0.06, 'overhead_gmacs': 0}
        ],
        'settings': {BUDGET: 0.6} if variant == 'pruned_60' else {},
        'environment': {'device': 'a processor', 'threads': 1, 'torch': '2.13.0'},
    }


@pytest.fixture
def content():
    runs = {
        f'{variant}_seed{seed}': run(variant, seed, *numbers[seed])
        for variant, numbers in NUMBERS.items()
        for seed in SEEDS
    }
    settings = {'videos.seed': 1, 'videos.train': 1120, 'videos.test': 560, 'version.torch': '2'}
    command = 'python tools/study.py --out work_dirs/study'
    return {'command': command, 'settings': settings, 'runs': runs}


@pytest.fixture
def load(tmp_path):
    def load(content):
        path = tmp_path / 'results.json'
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return Results.load(path)

    return load


def met(results):
    return [goal.met for goal in results.goals()]


def test_spread():
    assert Spread.of([85.0, 84.0, 86.0]).text() == '85.0 ± 1.0 (85.0, 84.0, 86.0)'
    assert Spread.of([1.26]).text(sign=True) == '+1.3'
    assert Spread.of([-0.01, 0.01]).text(sign=True) == '+0.0 ± 0.0 (+0.0, +0.0)'


def test_all_goals_met(load, content):
    results = load(content)
    assert met(results) == [True] * GOALS
    assert results.share('vared2', 0) == pytest.approx(57)
    assert results.difference('top1', 'vared2', 'random').values == pytest.approx((7.5, 3.5))
    assert 'not met' not in report.page(results)


@pytest.mark.parametrize(
    ('goals', 'name', 'change'),
    [
        ({0}, 'pruned_seed1', {'overhead_gmacs': 0.006}),
        ({1}, 'vared2_seed1', {'overhead_gmacs': 0.005}),
        ({2}, 'pruned_seed0', {'top1': 0.862}),
        ({3}, 'static_seed1', {'top1': 0.902}),
        ({2, 3}, 'static_seed1', {'top1': 0.922}),
        ({5}, 'longer_seed1', {'top1': 0.908}),
        ({4, 5}, 'longer_seed1', {'top1': 0.924}),
        ({6}, 'random_seed1', {'top1': 0.931}),
        ({8}, 'slimmed_seed0', {'top1': 0.881}),
        ({7, 8}, 'slimmed_seed0', {'top1': 0.902}),
        ({9}, 'fixed_seed0', {'top1': 0.895}),
        ({9}, 'fixed_seed1', {'correct': '1' * 200}),
        ({10}, 'vared2_seed1', {'spread': [0.5, 0.6]}),
        ({11}, 'random_seed0', {'ratio': {'mean': 0.57, 'min': 0.5, 'max': 0.7, 'std': 0.1}}),
        ({12}, 'vared2_seed0', {'p': 0.02}),
        ({12}, 'vared2_seed0', {'still': 0.61}),
        ({13}, 'pruned_60_seed1', {'settings': {BUDGET: 0.58}}),
    ],
)
def test_each_goal_can_be_missed(load, content, goals, name, change):
    changed = content['runs'][name]
    for inner in (changed['controls'] or {}, (changed['motion'] or {}).get('all') or {}, changed):
        if set(change) <= set(inner):
            inner.update(change)
            break
    results = load(content)
    assert met(results) == [i not in goals for i in range(GOALS)]
    assert report.page(results).count('**not met**') == len(goals)


def test_what_was_not_measured_is_said(load, content):
    content['runs'] = {k: v for k, v in content['runs'].items() if k.startswith('static')}
    results = load(content)
    assert met(results) == [None] * GOALS
    assert report.page(results).count('not measured') >= GOALS


def test_page(load, content):
    page = report.page(load(content))
    assert '88.5 ± 1.4 (87.5, 89.5)' in page
    assert '| 50.0 – 59.0 |' in page
    assert 'vared2 − random | +5.5 ± 2.8 (+7.5, +3.5) |' in page
    assert 'pruned − slimmed | +6.0 ± 0.7 (+6.5, +5.5) |' in page
    assert 'vared2 − fixed | +3.5 ± 0.0 (+3.5, +3.5) | +1.5 to +5.8 | +1.0 ± 0.0 (' in page
    assert '| vared2 | 88.5 ± 1.4 (87.5, 89.5) | 86.5 ± 1.4 (85.5, 87.5) | 87.5 ±' in page
    assert '| 60.0 ± 2.8 (58.0, 62.0) | 25.0 ± 0.0 (25.0, 25.0) |' in page
    assert 'no_motion − vared2 | -0.5 ± 2.8 (+1.5, -2.5) |' in page
    assert '| 30 % | – | – | – | – |' in page
    assert (
        '| 60 % | 88.5 ± 0.7 (88.0, 89.0) | 60.0 ± 1.4 (59.0, 61.0) | 78.5 ± 1.4 (77.5, 79.5) |'
        in page
    )
    assert '| vared2 | 0 | all | 75 | 485 | 50.0 | 75.0 | 0.0001 |' in page
    assert '| vared2 | 1 | same classes | no such clips |' in page
    assert content['command'] in page
    assert '18 runs, 36 minutes' in page
    assert '27 minutes of processor time' in page
    assert 'different versions' not in page
    assert 'Made 2026-11-20 to 2026-11-21 on:' in page
    for line in re.findall(r'^\|.*\|$', page, re.M):
        assert ' nan' not in line


def test_the_figure_has_every_network_and_what_was_set_without_training(load, content):
    points = report.points(load(content))
    assert set(points) == {*NUMBERS, 'vared2, set to 60 %'}
    expected = {
        'vared2': [(0.057, 87.5), (0.061, 89.5)],
        'vared2, set to 60 %': [(0.06, 77.5), (0.06, 79.5)],
    }
    for name, runs in expected.items():
        assert np.asarray(points[name]) == pytest.approx(np.asarray(runs)), name


def test_pages_of_older_results_and_of_other_videos(load, content):
    """Of results from before there were controls, what is known is told."""
    for found in content['runs'].values():
        del found['correct'], found['controls'], found['calibrated'], found['date']
    content['settings'] = {'videos.name': 'gestures', 'videos.train': 619, 'videos.test': 267}
    page = report.page(load(content))
    assert page.startswith('# Results of the study on gestures\n')
    assert 'Videos of gestures (619 to train, 267 to test)' in page
    assert '| not measured | – |' in page
    assert 'not counted. Made on:' in page
    content['settings'] = {'videos.seed': 6, 'videos.repeats': 5.0}
    content['runs']['vared2_seed1']['settings'] = {BUDGET: 0.2}
    page = report.page(load(content))
    assert page.startswith(
        '# Results of the study on clips that differ in speed at a budget of 20 %'
    )
    assert '--seed 6 --repeats 5, ? to train' in page


def test_runs_of_different_versions_are_told(load, content):
    del content['settings']['version.torch']
    content['runs']['static_seed0']['settings'] = {'version.torch': '1'}
    assert 'different versions of PyTorch or of this package' in report.page(load(content))


def test_tool_writes_page_and_figure(load, content, tmp_path, capsys):
    load(content)
    written = tmp_path / 'docs' / 'results_speeds.md'
    load_tool('study').main(['--report', str(tmp_path), '--page', str(written)])
    assert '![Accuracy over compute](results_speeds.png)' in written.read_text()
    assert written.with_suffix('.png').read_bytes()[:4] == b'\x89PNG'
    assert 'results_speeds.md is written' in capsys.readouterr().out


def test_tool_names_mistakes(tmp_path, capsys):
    tool = load_tool('study')
    for argv, named in (
        (['--report', str(tmp_path)], 'results.json: no such file'),
        (['--out', str(tmp_path), '--variants', 'statik'], "'statik'"),
        (['--out', str(tmp_path), '--jobs', '0'], '--jobs'),
        (['--out', str(tmp_path), '--videos', '0', '1', '1'], '--train'),
        (['--out', str(tmp_path), '--data-root', str(tmp_path)], '--data-root: expected a folder'),
    ):
        with pytest.raises(SystemExit):
            tool.main(argv)
        assert named in capsys.readouterr().err


def test_command_of_the_tool():
    tool = load_tool('study')
    parse = tool.build_parser().parse_args
    plain = 'python tools/study.py --out work_dirs/study'
    assert tool.command(parse(['--out', 'elsewhere', '--data', 'there', '--jobs', '7'])) == plain
    given = ['--seeds', '1', '--epochs', '2', '3', '--scale', 'large', '--budget', '0.2']
    again = tool.command(parse(['--out', 'elsewhere', *given]))
    assert parse(again.split()[2:]).epochs == [2, 3]
    assert parse(again.split()[2:]).seeds == [1]
    assert parse(again.split()[2:]).scale == 'large'
    assert parse(again.split()[2:]).budget == 0.2


def broken(content, change):
    content = copy.deepcopy(content)
    change(content)
    return content


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        (lambda c: c.pop('runs'), 'expected the results'),
        (lambda c: c['runs']['vared2_seed0'].pop('top1'), "lacks 'top1'"),
        (lambda c: c['runs']['vared2_seed0'].update(variant='other'), "variant 'other'"),
        (lambda c: [c['runs'].pop(f'static_seed{seed}') for seed in SEEDS], "run of 'static'"),
    ],
)
def test_other_files_are_refused(load, content, change, named):
    with pytest.raises(ValueError, match=named):
        load(broken(content, change))
    with pytest.raises(ValueError, match='expected the results'):
        load('no JSON')
