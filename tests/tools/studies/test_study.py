# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What is compared: the order of the runs, and what each config changes."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vared2_mmaction
from studies import match, study
from synthetic.moving_shapes import MovingShapes
from vared2_mmaction.apis.check import check_config

CONFIGS = Path(__file__).parents[3] / 'configs' / 'study'
OPTIONS = [[0, 1]] * 8 + [[1, 2]]
EQUAL_COMPUTE = {'random': 0.4, 'slimmed': 6, 'fixed': OPTIONS}


def plan(**changes):
    return study.Study(CONFIGS, MovingShapes(), **changes)


def config(variant, seed=0, **changes):
    return plan(**changes).config(study.Run(variant, seed), EQUAL_COMPUTE.get(variant))


@pytest.fixture(scope='module')
def configs():
    """Of all variants, with seed 7."""
    return {name: config(name, seed=7) for name in study.VARIANTS}


def changed(configs, variant, base):
    mine, theirs = (study.flatten(configs[name].to_dict()) for name in (variant, base))
    values = {key: mine.get(key) for key in {*mine, *theirs}}
    return {key: value for key, value in values.items() if value != theirs.get(key)}


def test_runs_come_after_what_they_need():
    runs = plan().runs()
    assert len(runs) == len(set(runs)) == 3 * len(study.VARIANTS)
    for run in runs:
        assert run.needs is None or runs.index(run.needs) < runs.index(run)
        assert run.needs is None or run.needs.seed == run.seed
    assert plan(variants=('random',), seeds=(5,)).runs() == [
        study.Run(name, 5) for name in ('static', 'vared2', 'random')
    ]


@pytest.mark.parametrize(
    ('variant', 'expected'),
    [
        (
            'channel',
            {
                'model.backbone.dynamic.temporal': 1,
                'model.backbone.dynamic.gate.initial.channel.0': 0.2,
                'model.backbone.dynamic.gate.initial.channel.1': 0.1,
            },
        ),
        ('temporal', {'model.backbone.dynamic.channel': 1}),
        (
            'no_motion',
            {
                'model.backbone.dynamic.gate.motion': False,
                'model.backbone.dynamic.gate.motion_slope': 0.0,
            },
        ),
        (
            'dear_dominant',
            {
                'model.backbone.dynamic.gate.initial.0': 0.9,
                'model.backbone.dynamic.gate.initial.1': 0.067,
                'model.backbone.dynamic.gate.initial.2': 0.033,
                'model.backbone.dynamic.gate.motion_slope': 0.05,
            },
        ),
    ],
)
def test_variants_change_nothing_else(configs, variant, expected):
    assert changed(configs, variant, 'vared2') == expected


def test_weight_of_the_budget_loss(configs):
    expected = 0.1 * configs['vared2'].model.cls_head.loss_budget.loss_weight
    found = changed(configs, 'lambda_low', 'vared2')
    assert found == {'model.cls_head.loss_budget.loss_weight': pytest.approx(expected)}


def test_a_budget_of_the_study_is_that_of_variants_without_their_own(configs):
    key = 'model.cls_head.loss_budget.budget'
    for name, cfg in configs.items():
        other = study.flatten(config(name, seed=7, budget=0.2).to_dict())
        mine = study.flatten(cfg.to_dict())
        differs = {k: v for k, v in other.items() if mine.get(k) != v}
        dynamic = study.VARIANTS[name].base == 'vared2'
        assert differs == ({key: 0.2} if dynamic and name not in study.PRUNED else {}), name


def test_random_policy_differs_in_its_gates_alone(configs):
    found = changed(configs, 'random', 'vared2')
    assert found['model.backbone.type'] == 'RandomPolicyResNet2Plus1d'
    assert found['model.backbone.dynamic.gate.thrift'] == 0.4
    others = [key for key in found if not key.startswith('model.backbone.dynamic.gate')]
    others = [key for key in others if not key.startswith('custom_hooks.')]
    assert sorted(others) == ['custom_imports.imports.1', 'model.backbone.type']
    hooks, given = (
        [hook.type for hook in configs[name].custom_hooks] for name in ('random', 'vared2')
    )
    assert hooks == [kind for kind in given if kind != 'FreezeGatesHook']
    assert found['custom_imports.imports.1'] == 'studies.random_gate'


def test_slimmed_network_is_trained_as_long_as_both_phases(configs):
    static, dynamic, slimmed = (configs[name] for name in ('static', 'vared2', 'slimmed'))
    epochs = static.train_cfg.max_epochs + dynamic.train_cfg.max_epochs
    assert slimmed.train_cfg.max_epochs == epochs
    assert slimmed.param_scheduler[-1]['end'] == epochs
    assert slimmed.param_scheduler[0]['end'] == slimmed.param_scheduler[1]['begin']
    assert slimmed.model.backbone.base_channels == 6
    assert slimmed.model.cls_head.in_channels == 6 * 8
    shape = (3, 32, 32, 32)
    assert match.cost_of(slimmed, shape) < 0.7 * match.cost_of(static, shape)


@pytest.mark.parametrize('variant', study.VARIANTS)
def test_configs_are_valid(configs, variant):
    cfg = copy.deepcopy(configs[variant])
    cfg.load_from = None
    check_config(cfg)
    assert cfg.randomness.seed == 7
    assert cfg.val_dataloader is None


def test_epochs_stretch_the_schedules():
    cfg = config('static', epochs=(2, 4))
    assert cfg.train_cfg.max_epochs == 2
    assert [(s['begin'], s['end']) for s in cfg.param_scheduler] == [(0, 1), (1, 2)]
    assert config('vared2', epochs=(2, 4)).train_cfg.max_epochs == 4
    assert config('slimmed', epochs=(2, 4)).train_cfg.max_epochs == 6


@pytest.mark.parametrize(
    ('variant', 'settles'), [('vared2', 'FreezeGatesHook'), ('pruned', 'FixOptionsHook')]
)
def test_epochs_stretch_the_hooks(variant, settles):
    kept, stretched = config(variant), config(variant, epochs=(2, 6))
    factor = 6 / kept.train_cfg.max_epochs
    before, after = ({hook.type: hook for hook in cfg.custom_hooks} for cfg in (kept, stretched))
    falls, begins = (
        [hooks[name][key] for hooks in (before, after)]
        for name, key in (('BudgetScheduleHook', 'fall'), (settles, 'begin'))
    )
    assert falls[1] == pytest.approx(factor * falls[0])
    assert begins[1] == pytest.approx(factor * begins[0])


def test_longer_network_is_the_static_one_but_for_its_schedule(configs):
    found = changed(configs, 'longer', 'static')
    assert {key.split('.')[0] for key in found} == {'train_cfg', 'param_scheduler'}
    epochs = [configs[name].train_cfg.max_epochs for name in ('static', 'vared2', 'longer')]
    assert epochs[2] == epochs[0] + epochs[1]


def test_settings_hold_what_matters():
    run, study_ = study.Run('vared2', 0), plan()
    settings = study_.settings(run, study_.config(run), 'weights')
    assert settings['start'] == 'weights'
    assert not [key for key, value in settings.items() if str(CONFIGS.parents[1]) in str(value)]
    for other in (
        plan(epochs=(2, 2)),
        replace(study_, videos=MovingShapes(train=14)),
        replace(study_, options={'model.backbone.base_channels': 4}),
    ):
        assert other.settings(run, other.config(run), 'weights') != settings


def test_settings_hold_nothing_of_code_but_versions(monkeypatch):
    """Unrelated changes of the code leave finished runs valid."""
    run, study_ = study.Run('vared2', 0), plan()
    settings = study_.settings(run, study_.config(run), 'weights')
    assert {key.partition('.')[0] for key in settings} == {
        *('variant', 'seed', 'start', 'version', 'videos', 'config')
    }
    for package in (torch, vared2_mmaction):
        with monkeypatch.context() as patch:
            patch.setattr(package, '__version__', 'another')
            changed = study_.settings(run, study_.config(run), 'weights')
        assert {key: value for key, value in changed.items() if value != settings[key]} == {
            f'version.{package.__name__}': 'another'
        }


def test_large_scale_builds(configs):
    scale = study.SCALES['large']
    large = study.Study(CONFIGS, scale.videos, scale.options)
    cfg = large.config(study.Run('vared2', 0))
    cfg.load_from = None
    check_config(cfg)
    small = configs['static']
    static = large.config(study.Run('static', 0))
    shape = (3, 32, 32, 32)
    assert match.cost_of(static, shape) > 4 * match.cost_of(small, shape)


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'variants': ('statik',)}, "--variants: .*'statik'"),
        ({'seeds': (1, 1)}, '--seeds'),
        ({'seeds': ()}, '--seeds'),
        ({'epochs': (1, 5)}, '--epochs'),
        ({'budget': 1.0}, '--budget'),
        ({'budget': 0.0}, '--budget'),
    ],
)
def test_mistakes(changes, named):
    with pytest.raises(ValueError, match=named):
        plan(**changes)


def test_width_that_does_not_fit_the_head(configs):
    cfg = copy.deepcopy(configs['static'])
    cfg.model.cls_head.in_channels = 100
    with pytest.raises(ValueError, match='in_channels=100: expected a multiple'):
        study.set_width(cfg, 8)


def test_flatten():
    nested = {'a': [1, {'b': (2.5, None)}], 'c': {}, 'd': float('inf'), 'e': 'text'}
    expected = {'a.0': 1, 'a.1.b.0': 2.5, 'a.1.b.1': None, 'c': '{}', 'd': 'inf', 'e': 'text'}
    assert study.flatten(nested) == expected
