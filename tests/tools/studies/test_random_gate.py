# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The random policy: its probabilities, and that it depends on the clip and the layer alone."""

import itertools

import pytest
import torch
from mmaction.registry import MODELS

from studies.random_gate import RandomPolicyGate, clip_keys, keyed_by, option_probabilities
from vared2_mmaction.models import static_cost

from ...models.backbones import STOCK

CONFIG = {
    'type': 'RandomPolicyResNet2Plus1d',
    **STOCK['ResNet2Plus1d'][0],
    'dynamic': {'gate': {'type': 'RandomPolicyGate', 'thrift': 0.5}},
}


@pytest.fixture
def backbone():
    model = MODELS.build(CONFIG)
    model.eval()
    return model


def policy(backbone, clips):
    """(N, layers, 2)."""
    with torch.no_grad():
        return backbone(clips).decisions[:, 1:, 3:5]


def draw(gate, clips, temporal_options=3):
    with keyed_by(clips):
        return gate(clips[:, :, None, None, None], temporal_options)


def test_probabilities():
    for number in (1, 2, 3, 4):
        assert option_probabilities(number, 0.0) == [1, *[0] * (number - 1)]
        assert option_probabilities(number, 1.0) == [*[0] * (number - 1), 1]
        assert option_probabilities(number, 0.5) == pytest.approx([1 / number] * number)
        for thrift in (0.2, 0.7):
            chances = option_probabilities(number, thrift)
            assert sum(chances) == pytest.approx(1)
            odds = [b / a for a, b in itertools.pairwise(chances)]
            assert odds == pytest.approx([thrift / (1 - thrift)] * len(odds))


@pytest.mark.parametrize('thrift', [0.0, 0.3, 1.0])
def test_draws_are_one_hot_and_as_likely_as_they_should_be(thrift):
    gate = RandomPolicyGate(4, 3, 3, thrift)
    channel, temporal = draw(gate, torch.randn(20_000, 4), temporal_options=2)
    for drawn in (channel, temporal):
        assert ((drawn == 0) | (drawn == 1)).all()
        assert (drawn.sum(1) == 1).all()
        expected = option_probabilities(drawn.shape[1], thrift)
        assert drawn.mean(0).tolist() == pytest.approx(expected, abs=0.012)  # 3.6 deviations


def test_draws_of_layers_dimensions_and_clips_are_independent():
    clips = torch.randn(20_000, 4)
    gates = [RandomPolicyGate(4, 2, 2, 0.5) for _ in range(2)]
    draws = [v[:, 0] for gate in gates for v in draw(gate, clips, 2)]
    draws += [v.roll(1) for v in draws]  # of the clip before
    correlation = torch.corrcoef(torch.stack(draws))
    assert (correlation - torch.eye(len(draws))).abs().max() < 0.03  # 4.2 deviations


def test_keys_tell_clips_apart_that_are_almost_alike():
    clips = torch.randn(1, 3, 4, 5).repeat(4, 1, 1, 1)
    clips[1, 2, 3, 4] = torch.nextafter(clips[1, 2, 3, 4], torch.tensor(9.0))
    clips[2] = clips[0].flip(1)  # the same frames in another order
    keys = clip_keys(clips).tolist()
    assert keys[0] == keys[3]
    assert len(set(keys)) == 3
    assert clip_keys(clips.to(memory_format=torch.channels_last)).tolist() == keys


def test_policy_of_a_network_is_a_function_of_the_clip(backbone):
    """Neither the batch nor what came before matters."""
    clips = torch.randn(6, 3, 8, 16, 16)
    together = policy(backbone, clips)
    assert len(together.unique(dim=0)) == 6
    order = torch.randperm(6)
    assert (policy(backbone, clips[order]) == together[order]).all()
    assert (torch.cat([policy(backbone, clip[None]) for clip in clips]) == together).all()
    backbone.train()  # does not return the module in stock backbones
    assert (policy(backbone, clips) == together).all()


def test_seeds_are_in_the_checkpoint_and_differ(backbone):
    clips = torch.randn(2, 3, 8, 16, 16)
    other = MODELS.build(CONFIG)
    other.eval()
    assert (policy(other, clips) != policy(backbone, clips)).any()
    other.load_state_dict(backbone.state_dict())
    assert (policy(other, clips) == policy(backbone, clips)).all()
    seeds = [v.item() for k, v in backbone.state_dict().items() if k.endswith('gate.seed')]
    assert len(set(seeds)) == len(backbone.dynamic_layers)


def test_gate_costs_nothing(backbone):
    for layer in backbone.dynamic_layers:
        backbone.get_submodule(layer).gate.thrift = 0.0
    with torch.no_grad():
        decisions = backbone(torch.randn(1, 3, 8, 16, 16)).decisions[0]
    executed, static, overhead = decisions[:, :3].sum(0).tolist()
    assert executed == static == static_cost(backbone, (3, 8, 16, 16))
    assert overhead == 0


def test_cheap_operations_are_trained(backbone):
    backbone.train()
    features, decisions = backbone(torch.randn(8, 3, 8, 16, 16))
    (features.square().mean() + decisions[..., 0].sum() * 0).backward()
    moved = [
        p.grad.abs().sum() > 0 for k, p in backbone.named_parameters() if '_options.cheap' in k
    ]
    assert len(moved) > 20
    assert sum(moved) > 0.8 * len(moved)


def test_mistakes():
    with pytest.raises(ValueError, match='gate.thrift=1.5'):
        RandomPolicyGate(4, 3, 3, 1.5)
    gate, clips = RandomPolicyGate(4, 3, 3, 0.5), torch.randn(2, 4, 8, 5, 5)
    with pytest.raises(RuntimeError, match='keys of 2 clips, found none'):
        gate(clips, 3)
    with (
        pytest.raises(RuntimeError, match='keys of 2 clips, found those of 3'),
        keyed_by(clips[[0, 0, 0]]),
    ):
        gate(clips, 3)
