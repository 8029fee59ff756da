# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The way of features and decisions through MMAction2's recognizers."""

import math

import pytest
import torch
from torch import nn

from vared2_mmaction import force_policy
from vared2_mmaction.models import dynamic_layers, to_static

from .backbones import NAMED, dynamic
from .comparing import randomise
from .recognizers import CLASSES, batch, recognizer, train_step


@pytest.mark.parametrize('name', NAMED)
@pytest.mark.parametrize('n', [1, 2, 4])  # 4: clips divide into segments
def test_training(name, n):
    model = recognizer(name, loss_budget={'loss_weight': 0.8, 'correct_only': False})
    log = train_step(model, batch(name, n))
    assert math.isfinite(log['loss'])
    assert log['loss_budget'] == pytest.approx(0.8 * log['compute_ratio'] ** 2, rel=1e-5)
    assert log['loss'] == pytest.approx(log['loss_cls'] + log['loss_budget'], rel=1e-5)
    losses = model(**model.data_preprocessor(batch(name, n), True), mode='loss')
    model.parse_losses(losses)[0].backward()
    assert [k for k, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('name', NAMED)
@pytest.mark.parametrize(('n', 'views'), [(4, 1), (2, 3)])
def test_testing_puts_compute_on_every_sample(name, n, views):
    model = recognizer(name)
    randomise(model)
    for layer in dynamic_layers(model).values():
        layer.gate.fc1.weight.data *= 10  # few layers, whose answers are to differ all the same
    model.eval()
    data = batch(name, n, views)
    with torch.no_grad():
        samples = model.test_step(data)
    layers = len(dynamic_layers(model))
    for video, sample in enumerate(samples):
        assert 0 < sample.compute_ratio <= 1
        assert isinstance(sample.compute_ratio, float)
        assert sample.policy.shape == (views, layers, 2)
        assert not sample.policy.is_floating_point()
        own_bytes = sample.policy.numel() * sample.policy.element_size()
        assert sample.policy.untyped_storage().nbytes() == own_bytes  # a dump writes no more
        alone = {'inputs': [data['inputs'][video]], 'data_samples': [data['data_samples'][video]]}
        with torch.no_grad():
            (own,) = model.test_step(alone)
        assert own.compute_ratio == pytest.approx(sample.compute_ratio)
        assert torch.equal(own.policy, sample.policy)
        torch.testing.assert_close(own.pred_score, sample.pred_score)
    policies = {tuple(s.policy.flatten().tolist()) for s in samples}
    assert len(policies) == n  # noise differs, and so do the answers
    assert {'compute_ratio', 'policy', 'pred_score'} <= set(samples[0].to_dict())


@pytest.mark.parametrize('name', NAMED)
def test_full_policy_predicts_what_the_static_recognizer_predicts(name):
    model, static = recognizer(name), recognizer(name, dynamic=False)
    keys = static.load_state_dict(model.state_dict(), strict=False)
    assert keys.missing_keys == []
    data = batch(name, 2, views=3)
    model.eval()
    static.eval()
    with torch.no_grad(), force_policy(model, 0, 0):
        samples = model.test_step(data)
    assert all(sample.compute_ratio == 1 for sample in samples)
    with torch.no_grad():
        for other in (static, to_static(model)):
            assert type(other.backbone) is type(static.backbone)
            other.eval()
            for sample, found in zip(other.test_step(data), samples, strict=True):
                torch.testing.assert_close(
                    found.pred_score, sample.pred_score, rtol=1e-5, atol=1e-6
                )


@pytest.mark.parametrize(
    ('name', 'fcn_test'), [('ResNet3d', False), ('ResNet2Plus1d', True), ('X3D', False)]
)
def test_max_testing_views(name, fcn_test):
    whole = recognizer(name, test_cfg={'fcn_test': fcn_test})
    randomise(whole)
    chunks = recognizer(name, test_cfg={'max_testing_views': 2, 'fcn_test': fcn_test})
    chunks.load_state_dict(whole.state_dict())
    data = batch(name, 1, views=5)
    results = []
    for model in (whole, chunks):
        model.eval()
        with torch.no_grad():
            (sample,) = model.test_step(data)
        results.append((sample.pred_score, sample.compute_ratio, sample.policy))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert results[0][1] == pytest.approx(results[1][1])
    assert torch.equal(results[0][2], results[1][2])


def test_stages_of_a_forward():
    model, data = recognizer('ResNet2Plus1d'), batch('ResNet2Plus1d', 2)
    inputs = model.data_preprocessor(data)['inputs']
    features, decisions = model(inputs, mode='tensor', stage='backbone')
    assert features.shape[:2] == (2, 64)
    assert decisions.shape == (2, 1 + 20, 6)
    assert model(inputs, mode='tensor', stage='neck').features.shape == features.shape
    assert model(inputs, mode='tensor', stage='head').shape == (2, CLASSES)


@pytest.mark.parametrize('kind', ['hard', 'soft', 'smooth', 'mixup', 'many'])
def test_correctness_factor(kind):
    """Only clips that are classified correctly pay for their compute."""
    head = {'loss_budget': {'loss_weight': 1.0}}
    label = None
    if kind == 'soft':
        label = torch.tensor([0.1, 0.6, 0.3, 0, 0])
    if kind == 'smooth':
        head['label_smooth_eps'] = 0.1
    if kind == 'many':
        head |= {'multi_class': True, 'loss_cls': {'type': 'BCELossWithLogits'}}
        label = torch.tensor([1.0, 1, 0, 0, 1])
    model = recognizer('ResNet2Plus1d', **head)
    if kind == 'mixup':
        preprocessor = {'type': 'ActionDataPreprocessor', 'blending': {'type': 'MixupBlending'}}
        preprocessor['blending']['num_classes'] = CLASSES
        preprocessor['format_shape'] = 'NCTHW'
        from mmaction.registry import MODELS

        model.data_preprocessor = MODELS.build(preprocessor)
    nn.init.zeros_(model.cls_head.fc_cls.weight)
    with torch.no_grad():
        model.cls_head.fc_cls.bias.copy_(torch.tensor([0, 9.0, 0, 0, 0]))  # always class 1
    log = train_step(model, batch('ResNet2Plus1d', 4, label=label), lr=0)
    square = log['compute_ratio'] ** 2
    if kind == 'mixup':  # two neighbours of four share class 1 at most
        assert 0 <= log['loss_budget'] <= square * 1.001
    else:
        correct = {'hard': 1 / 4, 'smooth': 1 / 4, 'soft': 1, 'many': 1}[kind]
        assert log['loss_budget'] == pytest.approx(square * correct, rel=1e-4)


def test_stock_parts_around_a_dynamic_backbone_explain_themselves():
    model = recognizer('ResNet3d')
    data = batch('ResNet3d', 2)
    neck, model.neck = model.neck, None
    with pytest.raises(TypeError, match=r'model needs neck=dict\(type="SoftModulationGateNeck"\)'):
        train_step(model, data)
    stock = recognizer('ResNet3d', dynamic=False)
    head, model.cls_head = model.cls_head, stock.cls_head
    with pytest.raises(TypeError, match='adaptive_avg_pool3d: the model needs neck=.*VARED2 head'):
        train_step(model, data)
    stock.neck = neck
    with pytest.raises(TypeError, match='expects the features and decisions .* got a tensor of'):
        train_step(stock, data)
    model.neck = neck
    with pytest.raises(TypeError, match='VARED2 head'):
        train_step(model, data)
    model.cls_head = head
    train_step(model, data)


@pytest.mark.parametrize(('clips', 'frames'), [(8, 6), (4, 6), (4, 3), (4, 2), (2, 1), (2, 10)])
def test_clips_of_another_length_are_refused(clips, frames):
    model = recognizer('ResNet')  # of 4 segments
    data = batch('ResNet', clips)
    data['inputs'] = [torch.randn(frames, 3, 32, 32) for _ in range(clips)]
    whole = clips * frames % 4 == 0  # otherwise the backbone itself cannot divide them
    message = f'num_segments=4, .* clips of {frames} frames' if whole else 'num_segments=4, got'
    model.eval()
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        model.test_step(data)
    model.train()
    with pytest.raises(ValueError, match=message):
        train_step(model, data)


def test_pooled_segments_are_refused():
    model, data = recognizer('ResNet'), batch('ResNet', 2)
    model.backbone = dynamic('ResNetTSM', temporal_pool=True)
    with pytest.raises(ValueError, match=r'of 2 clips, got \(1, 64, 4, .*\(temporal_pool\)'):
        train_step(model, data)


def test_checkpoint_of_another_network_is_refused(tmp_path):
    from mmengine.runner import load_checkpoint

    model = recognizer('ResNet2Plus1d')
    for other, key in (
        (recognizer('ResNet3d', dynamic=False), r'backbone\.conv1\.conv\.conv_s\.weight.*nothing'),
        (nn.Linear(2, 2), r'backbone\.conv1\.conv\.conv_s\.weight.*nothing'),
    ):
        path = str(tmp_path / 'other.pth')
        torch.save({'state_dict': other.state_dict()}, path)
        with pytest.raises(RuntimeError, match=f'checkpoint of another network: expected {key}'):
            load_checkpoint(model, path, strict=False)
    options = dynamic('ResNet2Plus1d', {'channel': 2})
    with pytest.raises(RuntimeError, match=r'layer1.*gate\.fc2\.weight of shape'):
        model.backbone.load_state_dict(options.state_dict(), strict=False)
    fewer = recognizer('ResNet2Plus1d', num_classes=3)
    torch.save({'state_dict': fewer.state_dict()}, path)
    load_checkpoint(model, path, strict=False)  # another head is fine-tuning


def test_half_the_static_compute_costs_a_quarter():
    from vared2_mmaction.ops import ComputationBudgetLoss

    ratio = torch.tensor([0.5, 1.0], dtype=torch.float64, requires_grad=True)
    correct = torch.tensor([1.0, 0.0])
    assert ComputationBudgetLoss(1.0)(ratio, correct).item() == pytest.approx(0.125)
    assert ComputationBudgetLoss(1.0, budget=0.5)(ratio, correct).item() == 0
    assert ComputationBudgetLoss(1.0, budget=0.9)(ratio, correct).item() == 0  # not its square
    every = ComputationBudgetLoss(2.0, budget=0.5, correct_only=False)(ratio, correct)
    assert every.item() == pytest.approx(0.25)
    every.backward()
    assert ratio.grad.tolist() == [0, 1]  # 2 * 2 * 0.5 / 2; nothing under the budget
    ratio.grad = None
    together = ComputationBudgetLoss(2.0, budget=0.5, correct_only=False, per_clip=False)
    together(ratio, correct).backward()
    assert ratio.grad.tolist() == [0.5, 0.5]  # 2 * 2 * 0.25 / 2 each, also under the budget
    alone = ComputationBudgetLoss(2.0, budget=0.25, per_clip=False)
    assert alone(ratio, correct).item() == pytest.approx(2 * 0.25**2 / 2)  # of the correct clip
    assert alone(ratio, 0 * correct).item() == 0
    for wrong in ({'loss_weight': -1}, {'budget': 1.0}, {'budget': -0.1}):
        with pytest.raises(ValueError, match=f'loss_budget.{next(iter(wrong))}'):
            ComputationBudgetLoss(**wrong)
