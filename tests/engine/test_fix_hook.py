# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Options that are fixed for all clips while a network trains."""

from types import SimpleNamespace

import pytest
import torch
from mmaction.registry import HOOKS
from mmengine.hooks import EMAHook, Hook
from torch import nn

from vared2_mmaction import dynamize
from vared2_mmaction.engine import FixOptionsHook, FreezeGatesHook
from vared2_mmaction.engine.network import network_of
from vared2_mmaction.models import ComputationBudgetLoss, dynamic_layers
from vared2_mmaction.ops.gate import SoftModulationGate

from .training import STEPS, config, train

BUDGET = 0.52  # that options of so few layers come near to
HOOK = {'type': 'FixOptionsHook', 'begin': 1}
FLAT = [{'type': 'GateSetter', 'bias': 0.0, 'std': 1.0}]


@HOOKS.register_module()
class GateKeeper(Hook):
    """Copies gates and other weights at the end of every epoch."""

    def before_train(self, runner):
        self.states = []

    def after_train_epoch(self, runner):
        state = network_of(runner).state_dict()
        self.states.append({name: value.clone() for name, value in state.items()})


def settings(videos, folder, *hooks, **changes):
    changes = {
        'model__cls_head__loss_budget__budget': BUDGET,
        'model__backbone__dynamic': {'layers': 'conv'},
        'randomness': {'seed': 0},
        **changes,
    }
    return config(videos, folder, [*FLAT, HOOK, *hooks], **changes)


def fixed(*args, **changes):
    return train(settings(*args, **changes))


def in_use(model):
    return {name: layer.in_use for name, layer in dynamic_layers(model).items()}


def test_every_clip_gets_the_same_options_at_the_budget(videos, tmp_path):
    ema = {'type': 'EMAHook', 'momentum': 0.5}
    training = fixed(videos, tmp_path, ema, {'type': 'PolicyUsageHook'})
    before, after = training.seen[:STEPS], training.seen[STEPS:]
    policies = torch.cat([policy for policy, _ in before])
    assert not (policies == policies[0]).all()
    policies = torch.cat([policy for policy, _ in after])
    assert (policies == policies[0]).all()
    ratios = torch.cat([ratio for _, ratio in after])
    assert (ratios == ratios[0]).all()
    assert abs(float(ratios[0]) - BUDGET) <= 0.01
    (line,) = (line for line in training.log.splitlines() if 'FixOptionsHook: compute' in line)
    assert f'compute ratio {float(ratios[0]):.3f} of every clip' in line
    assert f'the budget is {BUDGET}; channel option' in line
    left = in_use(network_of(training.runner))
    assert {len(options) for layer in left.values() for options in layer} == {1}
    chosen = [[option for (option,) in layer] for layer in left.values()]
    assert policies[0].tolist() == chosen
    (ema,) = (hook for hook in training.runner.hooks if isinstance(hook, EMAHook))
    assert in_use(ema.ema_model.module) == left
    assert not training.warnings  # of gates that say the same of all clips


def test_the_network_goes_on_and_gates_do_not(videos, tmp_path):
    changes = {
        'train_cfg__max_epochs': 3,
        'optim_wrapper__optimizer': {'type': 'SGD', 'lr': 0.01},
    }
    training = fixed(videos, tmp_path, {'type': 'GateKeeper'}, **changes)
    (keeper,) = (hook for hook in training.runner.hooks if isinstance(hook, GateKeeper))
    _, second, third = keeper.states
    gates = {name for name in second if '.gate.' in name and 'num_batches' not in name}
    assert gates
    assert all(torch.equal(second[name], third[name]) for name in gates)
    weights = {name for name in second if name.endswith('conv.weight')}
    assert not any(torch.equal(second[name], third[name]) for name in weights)


def test_what_is_fixed_stays_when_training_is_resumed(videos, tmp_path):
    cfg = settings(videos, tmp_path)
    cfg.default_hooks.checkpoint = {'type': 'CheckpointHook', 'interval': 1}
    left = in_use(network_of(train(cfg).runner))
    cfg = config(
        videos,
        tmp_path / 'resumed',
        [HOOK],
        train_cfg__max_epochs=3,
        model__cls_head__loss_budget__budget=0.9,
        model__backbone__dynamic={'layers': 'conv'},
        load_from=str(tmp_path / 'epoch_2.pth'),
        resume=True,
    )
    training = train(cfg)
    assert len(training.seen) == STEPS
    assert in_use(network_of(training.runner)) == left
    assert 'FixOptionsHook: compute' not in training.log


def test_a_budget_out_of_reach_is_said(videos, tmp_path):
    training = fixed(videos, tmp_path, model__cls_head__loss_budget__budget=0.01)
    said = [line for line in training.log.splitlines() if 'as near to the budget 0.01' in line]
    assert len(said) == 1
    assert 'WARNING' in said[0]
    cheapest = {
        options for layer in in_use(network_of(training.runner)).values() for options in layer
    }
    assert cheapest <= {(1,), (2,)}


@pytest.mark.parametrize('options', [{'begin': -1}, {'begin': 1, 'clips': 0}])
def test_wrong_options_are_named(options):
    with pytest.raises(ValueError, match=r'FixOptionsHook: (begin|clips)='):
        FixOptionsHook(**options)


class DerivedGate(SoftModulationGate):
    pass


@pytest.mark.parametrize('hook', [FixOptionsHook, FreezeGatesHook])
def test_gates_that_cannot_be_brought_to_a_budget_are_refused_before_training(hook):
    net = dynamize(nn.Sequential(nn.Conv3d(3, 8, 3)), layers='0')
    next(iter(dynamic_layers(net).values())).gate.__class__ = DerivedGate
    model = nn.Sequential(net, ComputationBudgetLoss(1.0, budget=0.5))
    runner = SimpleNamespace(model=model, max_iters=9, train_dataloader=range(3))
    with pytest.raises(ValueError, match='0: expected a SoftModulationGate to calibrate'):
        hook(begin=1).before_train(runner)


def test_without_layers_or_budget_it_is_refused_before_training(videos, tmp_path):
    runner = SimpleNamespace(model=nn.Linear(1, 1), max_iters=9, train_dataloader=range(3))
    with pytest.raises(ValueError, match='the model has no dynamic layer'):
        FixOptionsHook(begin=1).before_train(runner)
    with pytest.raises(ValueError, match='expected an epoch, counted from 0, of the 3'):
        FixOptionsHook(begin=3).before_train(runner)
    with pytest.raises(ValueError, match='no ComputationBudgetLoss with a weight and a budget'):
        fixed(videos, tmp_path, model__cls_head__loss_budget__budget=0.0)
