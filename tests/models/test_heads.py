# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Any stock head holds the budget loss."""

import copy
import pickle

import pytest
import torch
from mmaction.models.heads import BaseHead
from mmaction.registry import MODELS
from mmaction.structures import ActionDataSample
from mmengine.config import Config

from vared2_mmaction.apis.check import check_config
from vared2_mmaction.models import force_policy, to_static
from vared2_mmaction.models.blocks import parts_of
from vared2_mmaction.models.heads import BudgetHead
from vared2_mmaction.models.neck import ModulatedFeatures

from .backbones import STOCK
from .comparing import randomise
from .recognizers import CLASSES, batch, train_step

NAME = 'ResNet3dSlowFast'
HEAD = {'type': 'SlowFastHead', 'num_classes': CLASSES, 'in_channels': 320, 'dropout_ratio': 0}
HEAD['average_clips'] = 'prob'


@MODELS.register_module()
class FrameOfAnother(BaseHead):
    """Somebody's head that looks at frames."""

    def forward(self, x, num_segs, **kwargs):
        return x


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
        ({'type': 'TRNHead'}, 'TRNHead relates the frames of a clip.*GateNeck averages them'),
        ({'type': 'GCNHead'}, 'GCNHead classifies skeletons'),
        ({'type': 'TSNAudioHead'}, 'TSNAudioHead classifies sound'),
        ({'type': 'FeatureHead'}, 'FeatureHead has no loss; .*cls_head=dict.type="FeatureHead"'),
        ({'type': 'FrameOfAnother'}, 'FrameOfAnother may need the features of every frame'),
        ({'type': 'RGBPoseHead', 'in_channels': (8, 8)}, 'RGBPoseHead has a loss or predictions'),
        ({'type': 'VARED2I3DHead'}, 'VARED2I3DHead has a loss or predictions of its own'),
        ({'type': 'ComputationBudgetLoss'}, 'expected a classification head, got Computation'),
    ],
)
def test_heads_that_are_refused(head, message):
    if head['type'] not in ('ComputationBudgetLoss', 'FeatureHead'):
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


MAPS = {
    'I3DHead': (4, 2, 3, 3),
    'X3DHead': (4, 2, 3, 3),
    'TPNHead': (4, 2, 3, 3),
    'OmniHead': (4, 2, 3, 3),
    'UniFormerHead': (4,),
    'TimeSformerHead': (4,),
    'SlowFastHead': ((3, 2, 3, 3), (1, 4, 3, 3)),
    'MViTHead': ((8, 2, 3, 3), (4, 2, 3, 3)),
}
"""Features of a view that heads of 3-D networks take."""
OF_HEAD = {
    'OmniHead': {'image_classes': CLASSES, 'video_classes': CLASSES},
    'MViTHead': {'with_cls_token': False},
}
UNLIKE_OTHERS = {'FeatureHead', 'GCNHead', 'RGBPoseHead', 'TRNHead', 'TSNAudioHead'}
IN_2D = {'TSNHead', 'TSMHead', 'TPNHead'}


def head_config(kind, **more):
    config = OF_HEAD.get(kind, {})
    classes = {} if kind == 'OmniHead' else {'num_classes': CLASSES}
    return {'type': kind, 'in_channels': 4, 'average_clips': 'prob', **classes, **config, **more}


def both_heads(kind, **more):
    """A stock head, and the same with the budget loss."""
    stock = MODELS.build(head_config(kind, **more))
    stock.init_weights()
    ours = MODELS.build({'type': 'VARED2Head', 'head': head_config(kind, **more)})
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def noise(shape, views):
    if isinstance(shape[0], tuple):
        return tuple(noise(part, views) for part in shape)
    return torch.randn(views, *shape)


def modulated(features, views):
    ratio = torch.full((views,), 0.5, requires_grad=True)
    policy = torch.zeros(views, 3, 2, dtype=torch.long)
    return ModulatedFeatures(features, ratio, torch.ones(views, 3), policy)


def samples_of(number):
    return [ActionDataSample().set_gt_label(label) for label in range(number)]


def check_head(stock, ours, given, features, **kwargs):
    """Losses of one view a video, in training, and predictions of two equal those of stock."""
    for head in (stock, ours):
        head.train()
    torch.manual_seed(1)
    expected = stock.loss(given(1), samples_of(2), **kwargs)
    torch.manual_seed(1)
    found = ours.loss(features(1), samples_of(2), **kwargs)
    assert set(found) - set(expected) == {'loss_budget', 'compute_ratio'}
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)
    assert found['loss_cls'].requires_grad
    for head in (stock, ours):
        head.eval()
    with torch.no_grad():
        scores = [s.pred_score for s in stock.predict(given(2), samples_of(2), **kwargs)]
        predicted = ours.predict(features(2), samples_of(2), **kwargs)
    for sample, score in zip(predicted, scores, strict=True):
        torch.testing.assert_close(sample.pred_score, score)
        assert sample.policy.shape == (2, 3, 2)


def test_every_head_of_mmaction_is_tried():
    from mmaction.models import heads

    stock = {name for name in heads.__all__ if name != 'BaseHead'}
    assert stock == set(MAPS) | IN_2D | UNLIKE_OTHERS


@pytest.mark.parametrize('kind', MAPS)
def test_heads_of_3d_networks(kind):
    stock, ours = both_heads(kind)
    maps = {views: noise(MAPS[kind], 2 * views) for views in (1, 2)}
    check_head(stock, ours, maps.get, lambda views: modulated(maps[views], 2 * views))


@pytest.mark.parametrize('average_clips', ['prob', 'score'])
@pytest.mark.parametrize('kind', sorted(IN_2D))
def test_heads_of_2d_networks(kind, average_clips):
    """What Recognizer2D does with frames, (videos * views * segments, C, H, W), and with ours."""
    own = {'num_segments': 4, 'dropout_ratio': 0} if kind == 'TSMHead' else {'dropout_ratio': 0}
    stock, ours = both_heads(kind, average_clips=average_clips, **own)
    maps = {views: torch.randn(2, views * 4, 4, 3, 3) for views in (1, 2)}
    neck = MODELS.build({'type': 'SoftModulationGateNeck'})

    def of_stock(views):
        return maps[views].flatten(0, 1)

    def of_neck(views):
        decisions = torch.ones(2, 4, 4 * views, 5 + 4, dtype=torch.float64)
        answer, _ = neck([maps[views].transpose(1, 2).contiguous(), decisions])
        return answer.squeeze(2)

    class Counting:
        """``num_segs`` as Recognizer2D counts it: all frames of a video, without a neck."""

        def __getattr__(self, name):
            return getattr(stock, name)

        def loss(self, feats, samples, num_segs):
            return stock.loss(feats, samples, num_segs=len(feats) // len(samples))

        def predict(self, feats, samples, num_segs):
            return stock.predict(feats, samples, num_segs=len(feats) // len(samples))

    check_head(Counting(), ours, of_stock, of_neck, num_segs=1)


def test_tsm_whole():
    """A network of TSM, with its own head, two views and mean probabilities."""
    name = 'ResNetTSM'
    config = {
        'type': 'Recognizer2D',
        'backbone': {'type': 'VARED2Backbone', 'backbone': {'type': name, **STOCK[name][0]}},
        'neck': {'type': 'SoftModulationGateNeck'},
        'cls_head': {
            'type': 'VARED2Head',
            'head': head_config('TSMHead', in_channels=512, num_segments=4),
        },
    }
    check_config(Config({'model': config}))
    model = MODELS.build(config)
    model.init_weights()
    torch.nn.init.normal_(model.cls_head.fc_cls.weight)
    model.eval()
    static = to_static(model)
    static.eval()
    assert type(static.cls_head) is MODELS.get('TSMHead')
    data = batch('ResNet', 2, views=2)
    with torch.no_grad(), force_policy(model, 0, 0):
        samples, expected = model.test_step(data), static.test_step(copy.deepcopy(data))
    for sample, other in zip(samples, expected, strict=True):
        torch.testing.assert_close(sample.pred_score, other.pred_score)
    assert {'loss_cls', 'loss_budget'} <= set(train_step(model, batch('ResNet', 2, label=1)))


@pytest.mark.parametrize('spatial', ['avg', None])
@pytest.mark.parametrize('temporal', ['avg', None])
def test_features_of_3d_networks(spatial, temporal):
    head = MODELS.build({'type': 'FeatureHead', 'spatial_type': spatial, 'temporal_type': temporal})
    maps = noise(MAPS['I3DHead'], 3)
    assert torch.equal(head(modulated(maps, 3)), head(maps))
    assert torch.equal(head(tuple(modulated(maps, 3))), head(maps))  # of chunks of views


def test_features_of_slow_fast():
    """MMAction2's tool does not know the backbone by its name here."""
    maps = noise(MAPS['SlowFastHead'], 3)
    stock = MODELS.build({'type': 'FeatureHead', 'backbone_name': 'slowfast'})
    ours = MODELS.build({'type': 'FeatureHead'})
    assert torch.equal(ours(modulated(maps, 3)), stock(maps))


def test_features_of_2d_networks():
    frames = torch.randn(2, 2, 4, 5, 3, 3)  # videos, views, segments
    stock = MODELS.build({'type': 'FeatureHead'})
    expected = stock(frames.flatten(0, 2), num_segs=8)
    found = stock(modulated(frames.mean(2).transpose(1, 2), 4), num_segs=1)
    torch.testing.assert_close(found, expected)
    keep = MODELS.build({'type': 'FeatureHead', 'temporal_type': None})
    with pytest.raises(ValueError, match='temporal_type=None keeps .* averages them'):
        keep(modulated(frames.mean(2).transpose(1, 2), 4), num_segs=1)
