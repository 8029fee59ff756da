# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The way of features and decisions through mmdet's ``FastRCNN``; parity with the stock one."""

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import load_checkpoint

from vared2_mmaction import force_policy, optimize, static_cost
from vared2_mmaction.checkpoints.loading import is_own_parameter
from vared2_mmaction.models import dynamic_layers, force_policies, to_static

from .detectors import BACKBONES, batch, detect, detector, losses


@pytest.mark.parametrize('name', BACKBONES)
def test_full_policy_is_the_stock_detector(name):
    model, stock, data = detector(name), detector(name, dynamic=False), batch(name, 2)
    keys = model.load_state_dict(stock.state_dict(), strict=False)
    assert keys.unexpected_keys == []
    assert keys.missing_keys
    assert all(is_own_parameter(key) for key in keys.missing_keys)
    model.train()
    stock.train()
    with force_policy(model, 0, 0):
        found = losses(model, data)
    assert found.pop('compute_ratio') == 1
    assert found.pop('loss_budget').item() == pytest.approx(0.8)
    expected = losses(stock, data)
    assert set(found) == set(expected)
    assert 'loss_action_cls' in expected
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)
    stock.load_state_dict(model.state_dict(), strict=False)  # statistics of the step above
    for clip in range(2):
        with force_policy(model, 0, 0):
            sample = detect(model, data, clip)
        assert sample.compute_ratio == 1
        for other in (stock, to_static(model)):
            assert type(other.backbone) is type(stock.backbone)
            assert type(other.roi_head) is type(stock.roi_head)
            expected = detect(other, data, clip).pred_instances
            assert len(expected) == 3 + clip
            assert torch.equal(sample.pred_instances.bboxes, expected.bboxes)
            scores = sample.pred_instances.scores
            torch.testing.assert_close(scores, expected.scores, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', BACKBONES)
def test_skipping_equals_computing_all(name):
    model, data = detector(name), batch(name, 2)
    optimised, layers = optimize(model), len(dynamic_layers(model))
    for clip in range(2):
        policy = torch.randint(0, 3, (1, layers, 2))
        with force_policies(model, policy), force_policies(optimised, policy):
            skipped = detect(optimised, data, clip)
            dense = detect(model, data, clip)
        assert skipped.compute_ratio == dense.compute_ratio < 1
        assert torch.equal(skipped.policy, dense.policy)
        found, expected = skipped.pred_instances.scores, dense.pred_instances.scores
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        with force_policy(model, 0, 0):
            full = detect(model, data, clip).pred_instances.scores
        assert (found - full).abs().max() > 1e-4


@pytest.mark.parametrize('name', ['ResNet3dSlowOnly', 'ResNet2Plus1d'])
def test_every_result_has_the_compute_of_its_clip(name):
    model, data = detector(name), batch(name, 3)
    layers = len(dynamic_layers(model))
    samples = [detect(model, data, clip) for clip in range(3)]
    for sample in samples:
        assert isinstance(sample.compute_ratio, float)
        assert 0 < sample.compute_ratio <= 1
        assert sample.policy.shape == (1, layers, 2)
        assert not sample.policy.is_floating_point()
        assert {'compute_ratio', 'policy', 'pred_instances'} <= set(sample.to_dict())
    assert len({tuple(s.policy.flatten().tolist()) for s in samples}) > 1
    for clip, sample in enumerate(samples):
        with force_policies(model, sample.policy):
            again = detect(model, data, clip)
        assert again.compute_ratio == pytest.approx(sample.compute_ratio)
        assert torch.equal(again.policy, sample.policy)


@pytest.mark.parametrize('correct_only', [True, False])
@pytest.mark.parametrize('name', ['ResNet3dSlowOnly', 'ResNet2Plus1d'])
def test_every_clip_pays_in_training(name, correct_only):
    model = detector(name, loss_budget={'loss_weight': 0.5, 'correct_only': correct_only})
    data = batch(name, 3)
    model.train()
    found = losses(model, data)
    ratio = found['compute_ratio'].item()
    assert 0 < ratio <= 1
    # The mean of squares is no less than the square of the mean.
    assert 0.5 * ratio**2 * (1 - 1e-6) <= found['loss_budget'].item() <= 0.5
    total, _ = model.parse_losses(found)
    assert total.item() == pytest.approx((found['loss_action_cls'] + found['loss_budget']).item())
    total.backward()
    assert [k for k, p in model.named_parameters() if p.grad is None] == []
    model.zero_grad()
    losses(model, data)['loss_budget'].backward()
    touched = {k for k, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched
    assert all(is_own_parameter(key) for key in touched)  # the gates, and nothing else


def test_the_budget_loss_lowers_the_compute():
    model = detector('ResNet3d', loss_budget={'loss_weight': 50.0})
    data = batch('ResNet3d', 3)
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9))
    model.train()
    before = losses(model, data)['compute_ratio'].item()
    for _ in range(40):
        total, _ = model.parse_losses(losses(model, data))
        optimizer.update_params(total)
    assert losses(model, data)['compute_ratio'].item() < before - 0.05


@pytest.mark.parametrize('name', ['ResNet3dSlowOnly', 'ResNet2Plus1d'])
def test_an_optimised_detector_finds_the_same(name):
    model, data = detector(name), batch(name, 1)
    sample, again = detect(model, data), detect(optimize(model), data)
    assert torch.equal(sample.policy, again.policy)
    found, expected = again.pred_instances.scores, sample.pred_instances.scores
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', BACKBONES)
def test_static_cost_is_that_of_the_backbone_and_one_box(name):
    model = detector(name)
    shape = tuple(batch(name, 1)['inputs'][0].shape)
    head = model.roi_head.bbox_head
    expected = static_cost(model.backbone, shape) + head.num_classes * head.in_channels
    assert static_cost(model, shape) == expected
    assert static_cost(model, (1, *shape)) == expected
    with pytest.raises(ValueError, match='expected 5 dimensions for FastRCNN'):
        static_cost(model, (1, 1, *shape))


def test_a_static_checkpoint_loads(tmp_path):
    model, stock = detector('ResNet3dSlowOnly'), detector('ResNet3dSlowOnly', dynamic=False)
    torch.save({'state_dict': stock.state_dict()}, tmp_path / 'static.pth')
    load_checkpoint(model, str(tmp_path / 'static.pth'), strict=False)
    own = model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in stock.state_dict().items())
    other = detector('ResNet3d', dynamic=False)
    torch.save({'state_dict': other.state_dict()}, tmp_path / 'other.pth')
    with pytest.raises(RuntimeError, match='checkpoint of another network'):
        load_checkpoint(model, str(tmp_path / 'other.pth'), strict=False)


def test_stock_parts_around_a_dynamic_backbone_explain_themselves():
    model, stock = detector('ResNet3d'), detector('ResNet3d', dynamic=False)
    data = batch('ResNet3d', 2)
    neck = model.neck
    del model.neck
    with pytest.raises(TypeError, match='VARED2AVARoIHead expects what SoftModulationGateNeck'):
        losses(model, data)
    stock.neck = neck
    with pytest.raises(TypeError, match='expects the features and decisions .* got a tensor of'):
        losses(stock, data)
