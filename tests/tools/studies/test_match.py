# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Equal compute: expected costs are those that a network reports, and targets are met."""

import pytest
import torch
from mmaction.registry import MODELS

from studies import match
from vared2_mmaction.models import force_policy, static_cost

from ...models.backbones import STOCK

SHAPE = (3, 8, 16, 16)
BACKBONE = {
    'type': 'RandomPolicyResNet2Plus1d',
    **STOCK['ResNet2Plus1d'][0],
    'temporal_strides': (1, 1, 2, 2),
}


def build(**dynamic):
    model = MODELS.build({**BACKBONE, 'dynamic': dynamic})
    model.eval()
    return model


@pytest.fixture(scope='module')
def costs():
    return match.layer_costs(build(), SHAPE)


def test_costs_are_those_of_the_network(costs):
    backbone = build()
    assert costs.static == static_cost(backbone, SHAPE)
    assert len(costs.layers) == len(backbone.dynamic_layers)
    assert {layer.shape for layer in costs.layers} == {(3, 3), (3, 2)}  # the last have two frames
    for c, t in ((1, 0), (2, 1)):
        with torch.no_grad(), force_policy(backbone, c, t):
            executed = backbone(torch.zeros(1, *SHAPE)).decisions[0, :, 0].sum()
        assert executed == costs.fixed + sum(layer[c, t] for layer in costs.layers)


def test_network_of_one_dimension():
    costs = match.layer_costs(build(channel=1), SHAPE)
    assert {layer.shape[0] for layer in costs.layers} == {1}
    assert match.expected_ratio(costs, 0.5) < 1


def test_expected_compute_falls_with_thrift(costs):
    ratios = [match.expected_ratio(costs, i / 10) for i in range(11)]
    assert ratios[0] == 1
    assert ratios == sorted(ratios, reverse=True)
    assert len(set(ratios)) == 11
    cheapest = costs.fixed + sum(layer[-1, -1] for layer in costs.layers)
    assert ratios[-1] == pytest.approx(cheapest / costs.static)


def test_options_suffice_for_a_share_of_clips(costs):
    policies = torch.stack(
        [torch.randint(n, (500,)) for layer in costs.layers for n in layer.shape], 1
    ).view(500, -1, 2)
    shares = (policies[..., None] <= torch.arange(3)).double().mean(0)
    median = policies.median(0).values.tolist()

    def ratio(options):
        layers = zip(costs.layers, options, strict=True)
        return (costs.fixed + sum(layer[tuple(o)] for layer, o in layers)) / costs.static

    found = [match.options_for(costs, shares.tolist(), r) for r in (0.0, 0.4, 0.6, 0.8, 1.0)]
    ratios = [ratio(options) for options in found]
    assert ratios == sorted(ratios)
    assert match.options_for(costs, shares.tolist(), ratio(median)) == median
    # All clips, or the one that needs most.
    assert found[0] == policies.amax(0).tolist()
    assert found[-1] == policies.amin(0).tolist()
    assert all(abs(ratios[2] - 0.6) <= abs(r - 0.6) for r in ratios)


@pytest.mark.parametrize('target', [0.55, 0.6, 0.93, 1.0])
def test_bisection_meets_the_target(costs, target):
    thrift = match.thrift_for(costs, target)
    assert match.expected_ratio(costs, thrift) == pytest.approx(target, abs=1e-5)


@pytest.mark.parametrize('target', [0.01, 1.01])
def test_compute_that_no_policy_takes(costs, target):
    with pytest.raises(ValueError, match=f'ratio={target:.4f}: expected a share'):
        match.thrift_for(costs, target)


def test_network_reaches_what_was_expected(costs):
    thrift = match.thrift_for(costs, 0.6)
    backbone = build(gate=dict(type='RandomPolicyGate', thrift=thrift))
    with torch.no_grad():
        table = backbone(torch.randn(256, *SHAPE)).decisions[..., :2].sum(1)
    ratio = table[:, 0] / table[:, 1]
    assert abs(ratio.mean() - 0.6) < 4 * ratio.std() / 16
    assert ratio.std() < 0.16  # so that the test is one of half a point on 560 videos


def test_nearest_width():
    def cost(width):
        assert width >= 5, 'far from the target'
        return width**2

    assert match.width_for(cost, 49, 16) == 7
    assert match.width_for(cost, 50, 16) == 7
    assert match.width_for(cost, 62, 16) == 8
    assert match.width_for(cost, 256, 16) == 16
    with pytest.raises(ValueError, match='at most 256, of width 16'):
        match.width_for(cost, 257, 16)
    with pytest.raises(ValueError, match='at least 101, of width 1'):
        match.width_for(lambda width: 100 + width, 50, 16)
