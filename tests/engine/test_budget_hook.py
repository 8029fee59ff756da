# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Phases of the budget loss."""

import math
from types import SimpleNamespace

import pytest
from mmaction.registry import MODELS
from mmengine.dataset import InfiniteSampler
from torch import nn
from torch.utils.data import DataLoader

from vared2_mmaction import dynamize
from vared2_mmaction.engine import BudgetScheduleHook, FreezeGatesHook, network
from vared2_mmaction.models import ComputationBudgetLoss

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ('begin', 'ramp', 'factors'),
    [(0, 0, [1, 1, 1]), (2, 0, [0, 0, 1, 1]), (1, 3, [0, 0.25, 0.5, 0.75, 1, 1])],
)
def test_weight_of_each_epoch(begin, ramp, factors):
    loss = ComputationBudgetLoss(0.8)
    hook = BudgetScheduleHook(begin, ramp)
    runner = SimpleNamespace(model=nn.Sequential(loss), train_dataloader=range(3), max_iters=30)
    hook.before_train(runner)
    for epoch, factor in enumerate(factors):
        for runner.iter in range(3 * epoch, 3 * epoch + 3):
            hook.before_train_iter(runner, runner.iter % 3)
            assert loss.loss_weight == pytest.approx(0.8 * factor)
    hook.before_train_iter(runner, 2)  # a resumed run starts anywhere
    assert loss.loss_weight == pytest.approx(0.8 * factors[-1])
    hook.after_train(runner)
    assert loss.loss_weight == 0.8


def test_budget_falls_with_the_iterations():
    loss = ComputationBudgetLoss(0.8, budget=0.6)
    hook = BudgetScheduleHook(begin=1, fall=2)
    runner = SimpleNamespace(model=nn.Sequential(loss), train_dataloader=range(4), max_iters=40)
    hook.before_train(runner)
    budgets = []
    for runner.iter in range(14):
        hook.before_train_iter(runner, runner.iter % 4)
        budgets.append(loss.budget)
    falling = [1 - 0.4 * i / 8 for i in range(8)]
    assert budgets == pytest.approx([1] * 4 + falling + [0.6] * 2)
    runner.iter = 8  # a resumed run
    hook.before_train_iter(runner, 0)
    assert loss.budget == pytest.approx(0.8)
    hook.before_train(runner)  # again, after an error ended the training
    assert hook.losses == [(loss, 0.8, 0.6)]
    hook.after_train(runner)
    assert loss.budget == 0.6


def test_mistakes_are_named():
    with pytest.raises(ValueError, match='begin=-1'):
        BudgetScheduleHook(-1)
    training = SimpleNamespace(model=nn.Linear(1, 1), train_dataloader=range(3), max_iters=6)
    with pytest.raises(ValueError, match='no ComputationBudgetLoss.*VARED2 head'):
        BudgetScheduleHook().before_train(training)


@pytest.mark.parametrize('key', ['begin', 'ramp', 'fall'])
@pytest.mark.parametrize('value', ['2', None, True, -1, math.nan, math.inf, [2]])
def test_values_that_are_no_epochs_are_named(key, value):
    with pytest.raises(ValueError, match=f'BudgetScheduleHook: {key}=.*: expected a number of ep'):
        BudgetScheduleHook(**{key: value})


@pytest.mark.parametrize('hook', [BudgetScheduleHook, FreezeGatesHook])
def test_a_beginning_after_the_end_is_named(hook):
    net = dynamize(MODELS.build({'type': 'ResNet', 'depth': 18}), num_segments=2)
    model = nn.Sequential(net, ComputationBudgetLoss())
    training = SimpleNamespace(model=model, train_dataloader=range(4), max_iters=8)
    hook(begin=1.5).before_train(training)
    for begin in (2, 3):
        expected = f'{hook.__name__}: begin={begin}: expected an epoch.* of the 2 that are trained'
        with pytest.raises(ValueError, match=expected):
            hook(begin=begin).before_train(training)


@pytest.mark.parametrize(('processes', 'epochs'), [(1, 0.5), (3, 1.25)])
def test_an_infinite_sampler_has_epochs_of_all_processes(processes, epochs, monkeypatch):
    monkeypatch.setattr(network.dist, 'get_world_size', lambda: processes)
    loader = DataLoader(range(20), batch_size=2, sampler=InfiniteSampler(range(20)))
    runner = SimpleNamespace(train_dataloader=loader, iter=5)
    assert network.epochs_passed(runner) == epochs
    runner.train_dataloader = DataLoader(range(20), batch_size=2)  # this one knows its share
    assert network.epochs_passed(runner) == 0.5
