# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Metrics that a network predicts nothing for are refused before it runs."""

import pytest
from mmaction.utils import register_all_modules
from mmengine.config import Config

from commands.check_metrics import check_metrics
from vared2_mmaction.evaluation import ComputeMetric
from vared2_mmaction.models import SoftModulationGateNeck

register_all_modules()
DYNAMIC = {'neck': {'type': 'mmaction.SoftModulationGateNeck'}}
AVERAGED = {'cls_head': {'type': 'I3DHead', 'average_clips': 'prob'}}
COMPUTE, ACCURACY = {'type': 'mmaction.ComputeMetric'}, {'type': 'AccMetric'}
KEPT = [
    {'type': 'I3DHead'},
    {'type': 'VARED2TSNHead', 'average_clips': None},
    {'type': 'mmaction.VARED2I3DHead'},
    {'type': 'VARED2Head', 'head': {'type': 'SlowFastHead'}},
]


@pytest.mark.parametrize('split', ['val', 'test'])
@pytest.mark.parametrize(
    'evaluator',
    [
        COMPUTE,
        [ACCURACY, COMPUTE],
        {'type': ComputeMetric},
        {'type': 'Evaluator', 'metrics': [ACCURACY, COMPUTE]},
    ],
)
@pytest.mark.parametrize('neck', [{}, {'neck': {'type': 'TPN'}}, {'neck': None}])
def test_compute_of_a_static_network(neck, evaluator, split):
    cfg = Config({'model': {**AVERAGED, **neck}, f'{split}_evaluator': evaluator})
    with pytest.raises(ValueError, match=rf'^{split}_evaluator: ComputeMetric expects a dynamic'):
        check_metrics(cfg, split)
    cfg.model.update(DYNAMIC)
    check_metrics(cfg, split)


class OwnNeck(SoftModulationGateNeck):
    pass


def test_necks_may_be_of_a_class_of_ones_own():
    neck = {'neck': {'type': OwnNeck}}
    check_metrics(Config({'model': {**AVERAGED, **neck}, 'test_evaluator': COMPUTE}), 'test')


@pytest.mark.parametrize('head', KEPT)
def test_accuracy_of_scores_that_are_not_averaged(head):
    cfg = Config({'model': {**DYNAMIC, 'cls_head': head}, 'test_evaluator': [ACCURACY, COMPUTE]})
    with pytest.raises(ValueError, match=r"^model\.cls_head\.average_clips=None: expected 'prob'"):
        check_metrics(cfg, 'test')
    cfg.model.cls_head.get('head', cfg.model.cls_head)['average_clips'] = 'score'
    check_metrics(cfg, 'test')


@pytest.mark.parametrize(
    'changes',
    [
        {'model': {'cls_head': {'type': 'GCNHead'}}},  # which averages by default
        {'model': {'cls_head': {'type': 'RGBPoseHead'}}},  # has predictions of its own
        {'model': {'cls_head': {'type': 'I3DHead'}}, 'test_evaluator': {'type': 'DumpResults'}},
        {'model': {'cls_head': {'type': 'I3DHead'}}, 'test_evaluator': None},
        {'model': {'roi_head': {'type': 'AVARoIHead'}}},
    ],
)
def test_others_are_taken(changes):
    check_metrics(Config({'test_evaluator': ACCURACY, **changes}), 'test')
