# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Any stock head holds the budget loss."""

import copy
import pickle

import pytest
import torch
from mmaction.registry import MODELS
from mmengine.config import Config

from vared2_mmaction.apis.check import check_config
from vared2_mmaction.models import force_policy, to_static
from vared2_mmaction.models.blocks import parts_of
from vared2_mmaction.models.heads import BudgetHead

from .backbones import STOCK
from .recognizers import CLASSES, batch, train_step
from .test_backbones import randomise

NAME = 'ResNet3dSlowFast'
HEAD = {'type': 'SlowFastHead', 'num_classes': CLASSES, 'in_channels': 320, 'dropout_ratio': 0}
HEAD['average_clips'] = 'prob'


def slow_fast():
    """A recognizer whose backbone returns a map of each pathway."""
    config = {
        'type': 'Recognizer3D',
        'backbone': {'type': 'VARED2Backbone', 'backbone': {'type': NAME, **STOCK[NAME][0]}},
        'neck': {'type': 'SoftModulationGateNeck'},
        'cls_head': {'type': 'VARED2Head', 'head': HEAD, 'loss_budget': {'loss_weight': 0.5}},
    }
    check_config(Config({'model': config}))
    model = MODELS.build(config)
    model.init_weights()
    return model


def test_training():
    model = slow_fast()
    assert parts_of(type(model.cls_head)) == (BudgetHead, MODELS.get('SlowFastHead'))
    assert model.cls_head.loss_budget.loss_weight == 0.5
    gate = model.backbone.slow_path.layer1[0].conv2.conv.gate.fc2.weight
    before = gate.detach().clone()
    log = train_step(model, batch(NAME, 2, label=1))
    assert {'loss_cls', 'loss_budget', 'compute_ratio', 'top1_acc'} <= set(log)
    assert not torch.equal(gate, before)


def test_full_policy_predicts_what_the_stock_head_predicts():
    model, data = slow_fast(), batch(NAME, 2, views=2)
    model.eval()
    static = to_static(model)
    static.eval()
    assert type(static.cls_head) is MODELS.get('SlowFastHead')
    with torch.no_grad(), force_policy(model, 0, 0):
        samples, expected = model.test_step(data), static.test_step(copy.deepcopy(data))
    for sample, other in zip(samples, expected, strict=True):
        torch.testing.assert_close(sample.pred_score, other.pred_score)
        assert sample.compute_ratio == 1


def test_chunks_of_views():
    model, data = slow_fast(), batch(NAME, 1, views=3)
    randomise(model)
    model.eval()
    results = []
    for views in (None, 2):
        model.test_cfg = views and {'max_testing_views': views}
        with torch.no_grad():
            (sample,) = model.test_step(copy.deepcopy(data))
        results.append(sample)
    torch.testing.assert_close(results[0].pred_score, results[1].pred_score)
    assert torch.equal(results[0].policy, results[1].policy)
    assert results[0].policy.shape == (3, len(model.backbone.dynamic_layers), 2)


def test_copies_and_pickles_are_of_the_same_class():
    head = slow_fast().cls_head
    for clone in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert type(clone) is type(head)
        assert all(map(torch.equal, clone.state_dict().values(), head.state_dict().values()))


@pytest.mark.parametrize(
    ('head', 'message'),
    [
        ({'type': 'TSMHead'}, 'TSMHead classifies frame by frame, .* VARED2TSNHead'),
        ({'type': 'RGBPoseHead', 'in_channels': (8, 8)}, 'RGBPoseHead has a loss or predictions'),
        ({'type': 'VARED2I3DHead'}, 'VARED2I3DHead has a loss or predictions of its own'),
        ({'type': 'ComputationBudgetLoss'}, 'expected a classification head, got Computation'),
    ],
)
def test_heads_that_are_refused(head, message):
    if head['type'].endswith('Head'):
        head = {'num_classes': CLASSES, 'in_channels': 8, **head}
    with pytest.raises(TypeError, match=f'VARED2Head: .*{message}'):
        MODELS.build({'type': 'VARED2Head', 'head': head})


def test_the_mean_of_segments_is_what_tsm_classifies():
    stock = MODELS.build({'type': 'TSMHead', 'num_classes': 3, 'in_channels': 4, 'num_segments': 8})
    ours = MODELS.build({'type': 'VARED2TSNHead', 'num_classes': 3, 'in_channels': 4})
    ours.load_state_dict(stock.state_dict())
    for head in (stock, ours):
        head.eval()
    frames = torch.randn(2, 8, 4, 5, 5)
    expected = stock(frames.flatten(0, 1), num_segs=8)
    found = super(BudgetHead, ours).forward(frames.mean(1), num_segs=1)
    torch.testing.assert_close(found, expected)
