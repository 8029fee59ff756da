# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Gates that stay as they are from an epoch on, in trainings by MMEngine's Runner."""

import itertools
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmaction.registry import HOOKS
from mmaction.utils import register_all_modules
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from vared2_mmaction.budget import shift_gates
from vared2_mmaction.engine import FreezeGatesHook, freeze_hook
from vared2_mmaction.engine.network import network_of, networks_of
from vared2_mmaction.models import dynamic_layers

from .training import CLOSED, OPEN, VARIED, train
from .training import config as with_four_stages

STATES: list[dict[str, torch.Tensor]] = []


def config(*args, **changes):
    """A config of two stages."""
    cfg = with_four_stages(*args, **changes)
    strides = {'spatial_strides': (1, 2), 'temporal_strides': (1, 1)}
    two = {'num_stages': 2, 'stage_blocks': (1, 1), 'dilations': (1, 1), 'out_indices': (1,)}
    cfg.model.backbone.update(**two, **strides)
    cfg.model.cls_head.in_channels = 8
    return cfg


@HOOKS.register_module()
class StateKeeper(Hook):
    """Copies the state of the network after every epoch."""

    def after_train_epoch(self, runner):
        state = network_of(runner).state_dict()
        STATES.append({name: value.clone() for name, value in state.items()})


@pytest.mark.parametrize('optimizer', ['SGD', 'AdamW'])
def test_gates_stand_still_and_the_network_goes_on(videos, tmp_path, optimizer):
    register_all_modules()
    torch.manual_seed(0)
    STATES.clear()
    changes = {
        'optim_wrapper__optimizer': {'type': optimizer, 'lr': 0.01, 'weight_decay': 0.1},
        'train_cfg__max_epochs': 3,
        'model__cls_head__loss_budget__budget': 0.0,  # the loss of VA-RED2, without a budget
    }
    hooks = [{'type': 'FreezeGatesHook', 'begin': 1}, {'type': 'StateKeeper'}]
    train(config(videos, tmp_path, hooks, **changes))
    open_phase, first, second = STATES
    gates = [name for name in first if '.gate.' in name]
    assert gates
    for name in gates:  # running statistics of their normalisation included
        assert torch.equal(first[name], second[name])
        assert torch.equal(open_phase[name], second[name])
    others = [name for name in first if name.endswith('weight') and name not in gates]
    assert not any(torch.equal(first[name], second[name]) for name in others)


def test_gates_are_trained_before(videos, tmp_path):
    register_all_modules()
    torch.manual_seed(0)
    STATES.clear()
    changes = {
        'optim_wrapper__optimizer': {'type': 'SGD', 'lr': 0.01},
        'train_cfg__max_epochs': 3,
    }
    hooks = [{'type': 'FreezeGatesHook', 'begin': 2}, {'type': 'StateKeeper'}]
    train(config(videos, tmp_path, hooks, **changes))
    first, second, _ = STATES
    biases = [name for name in first if name.endswith('gate.fc2.bias')]
    assert biases
    assert not any(torch.equal(first[name], second[name]) for name in biases)


@pytest.mark.parametrize(
    ('gates', 'budget', 'off'),
    [
        (OPEN, 0.97, 'off the budget 0.97: compute ratio 1.000 is as near as one shift'),
        (OPEN, 0.99, None),
        (CLOSED, 0.9, 'off the budget 0.9: compute ratio '),
        (OPEN, 0.0, None),
    ],
)
def test_frozen_gates_off_their_budget_are_named_once(
    videos, tmp_path, monkeypatch, gates, budget, off
):
    """Those that say the same of all clips cannot be brought to most budgets."""
    register_all_modules()
    calls = itertools.count()

    def shift(*args):  # no two ratios are the same: MMEngine drops what it has said before
        before, ratio = shift_gates(*args)
        return before, ratio + next(calls) / 1000

    monkeypatch.setattr(freeze_hook, 'shift_gates', shift)
    changes = {
        'train_cfg__max_epochs': 3,
        'train_dataloader__dataset__indices': 2,  # one batch
        'model__cls_head__loss_budget__budget': budget,
    }
    hooks = [{'type': 'FreezeGatesHook', 'begin': 1}, gates]
    training = train(config(videos, tmp_path, hooks, **changes))
    said = [line for line in training.log.splitlines() if 'WARNING - FreezeGatesHook:' in line]
    assert len(said) == (off is not None)
    assert off is None or off in said[0]


def test_frozen_gates_keep_their_budget(videos, tmp_path):
    """However the network goes on learning; biases move, by the same for all gates."""
    budget = 0.8
    register_all_modules()
    STATES.clear()
    changes = {
        'optim_wrapper__optimizer': {'type': 'SGD', 'lr': 0.01},
        'train_cfg__max_epochs': 3,
        'model__cls_head__loss_budget__budget': budget,
        'model__backbone__dynamic': {'layers': 'conv'},
        'randomness': {'seed': 0},
    }
    hooks = [{'type': 'FreezeGatesHook', 'begin': 1}, {'type': 'StateKeeper'}, VARIED]
    training = train(with_four_stages(videos, tmp_path, hooks, **changes))
    said = re.findall(r'newest 6 clips (\S+), brought to (\S+); the budget is', training.log)
    assert len(said) == 3  # at the freeze, and at the end of each epoch
    before, after = np.array(said, dtype=float).T
    assert np.abs(before - budget).max() > 0.02
    assert np.abs(after - budget).max() <= 0.05  # of so few clips
    second, last = STATES[1], STATES[-1]
    moved = {
        key: last[key] - second[key]
        for key in last
        if '.gate.' in key and not torch.equal(last[key], second[key])
    }
    assert moved
    assert all(key.endswith('fc2.bias') for key in moved)
    steps = torch.cat([step[step != 0] for step in moved.values()])
    assert torch.allclose(steps, steps[0], atol=1e-5)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match='begin=-1'):
        FreezeGatesHook(-1)
    for wrong in ('1', None, True, math.nan, math.inf):
        with pytest.raises(ValueError, match='FreezeGatesHook: begin=.*: expected a number of ep'):
            FreezeGatesHook(wrong)
    with pytest.raises(ValueError, match='FreezeGatesHook: clips=0: expected a whole num'):
        FreezeGatesHook(1, clips=0)
    training = SimpleNamespace(model=nn.Linear(1, 1), train_dataloader=range(3), max_iters=6)
    with pytest.raises(ValueError, match='no dynamic layer'):
        FreezeGatesHook(0).before_train(training)


def test_epochs_end_where_they_do_after_one_was_resumed_halfway():
    """MMEngine then begins the epoch again, and goes on counting iterations."""
    hook = FreezeGatesHook(begin=0)
    hook.frozen, ended = [(torch.zeros(1), torch.zeros(1))], []
    hook._freeze = lambda runner: ended.append((runner.iter, batch))
    runner = SimpleNamespace(iter=4, max_iters=99, train_dataloader=range(10))
    for batch in (*range(10), *range(10)):
        hook.after_train_iter(runner, batch)
        runner.iter += 1
    assert ended == [(13, 9), (23, 9)]


def test_averages_are_brought_to_the_budget_with_the_options_in_use(videos, tmp_path):
    """Which weights that are loaded on initialisation left, after averages were made."""
    hooks = [{'type': 'EMAHook'}]
    training = Runner.from_cfg(config(videos, tmp_path, hooks, train_cfg__max_epochs=1))
    training.call_hook('before_run')
    model, _ = networks_of(training)
    for layer in dynamic_layers(model).values():
        layer.channel_options.use([1])
        layer.temporal_options.use([0, 1])
    for one in networks_of(training):
        assert {layer.in_use for layer in dynamic_layers(one).values()} == {((1,), (0, 1))}
