# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Options that no clip uses are taken out of use while a network trains."""

import logging
from types import SimpleNamespace

import pytest
import torch
from mmaction.registry import HOOKS
from mmengine.hooks import Hook
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from commands.cli import leave_process_group
from vared2_mmaction.engine import PruneOptionsHook
from vared2_mmaction.engine.network import network_of
from vared2_mmaction.engine.prune_hook import _left
from vared2_mmaction.models import dynamic_layers

from ..models.backbones import dynamic
from .training import STEPS, config, train


@HOOKS.register_module()
class BiasSetter(Hook):
    """Gives the options of every gate one weight each, whatever the clip."""

    priority = 'VERY_HIGH'

    def __init__(self, channel, temporal):
        self.biases = (*channel, *temporal)

    def before_train(self, runner):
        for layer in dynamic_layers(network_of(runner)).values():
            layer.gate.fc2.weight.data.zero_()
            layer.gate.fc2.bias.data.copy_(torch.tensor(self.biases[: len(layer.gate.fc2.bias)]))


SETTER = {'type': 'BiasSetter', 'channel': (-5.0, 1.0, 1.0), 'temporal': (1.0, -5.0, -5.0)}


def pruned(videos, folder, setter=SETTER, **options):
    hook = {'type': 'PruneOptionsHook', 'unused_for': STEPS, **options}
    return train(config(videos, folder, [setter, hook]))


def test_unused_options_are_pruned_named_and_cost_what_is_left(videos, tmp_path):
    training = pruned(videos, tmp_path)
    layers = dynamic_layers(network_of(training.runner))
    assert {layer.in_use.channel for layer in layers.values()} == {(1, 2)}
    lines = [line for line in training.log.splitlines() if 'PruneOptionsHook: unused' in line]
    assert len(lines) == 1
    assert 'channel options 0 of layer1.*, layer2.*, layer3.*, layer4.*' in lines[0]
    for name, layer in layers.items():
        # The last convolutions have two frames: of what clips are too short for nothing is known.
        short = 'layer4' in name and not name.endswith('conv1.conv.conv_s')
        assert layer.in_use.temporal == ((0, 2) if short else (0,)), name
    (policy, ratio), (after, pruned_ratio) = training.seen[0], training.seen[-1]
    assert torch.equal(policy, after)
    assert torch.equal(ratio, pruned_ratio)


def test_nothing_happens_before_it_begins_or_while_options_are_used(videos, tmp_path):
    everything = {'type': 'BiasSetter', 'channel': (1.0, 1.0, 1.0), 'temporal': (1.0, 1.0, 1.0)}
    for number, options in enumerate(({'begin': 1.5}, {'setter': everything})):
        training = pruned(videos, tmp_path / str(number), **options)
        for layer in dynamic_layers(network_of(training.runner)).values():
            assert layer.in_use == ((0, 1, 2), (0, 1, 2))


@pytest.mark.parametrize(
    ('in_use', 'counts', 'share', 'left'),
    [
        ((0, 1, 2), [4, 0, 4, 4, 4], 0.0, (0, 2)),
        ((0, 1, 2), [0, 1, 4, 4, 4], 0.5, (2,)),
        ((0, 1, 2), [1, 2, 1, 10, 10], 0.5, (1,)),  # a layer's last option stays
        ((1, 2), [3, 3, 3, 3, 3], 0.5, (1, 2)),
        ((0, 1), [0, 0, 0, 0, 0], 0.0, (0, 1)),  # no clip, no reason
        ((0, 1, 2, 3), [0, 0, 0, 7, 9], 0.9, (3,)),
    ],
)
def test_what_is_left(in_use, counts, share, left):
    assert _left(in_use, counts, share) == left


@pytest.mark.parametrize(
    'options', [{'unused_for': 0}, {'unused_for': 1, 'share': 1.0}, {'unused_for': 1, 'begin': -1}]
)
def test_wrong_options_are_named(options):
    with pytest.raises(ValueError, match=r'PruneOptionsHook: (unused_for|share|begin)='):
        PruneOptionsHook(**options)


def _train_a_part(rank, rendezvous):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{rendezvous}', rank=rank, world_size=2
    )
    torch.manual_seed(0)
    small = {'stage_blocks': (1, 1, 1, 1), 'base_channels': 4}
    network = DistributedDataParallel(dynamic('ResNet2Plus1d', **small))
    layers = dynamic_layers(network.module)
    for name, layer in layers.items():
        channel = 1.0 if rank == 1 and name.startswith('layer1') else -5.0
        layer.gate.fc2.weight.data.zero_()
        layer.gate.fc2.bias.data[:] = torch.tensor([channel, *[1.0] * 5])
    runner = SimpleNamespace(
        model=network,
        hooks=[],
        iter=0,
        max_iters=9,
        train_dataloader=range(9),
        logger=logging.getLogger(),
    )
    hook = PruneOptionsHook(unused_for=2)
    hook.before_train(runner)
    torch.manual_seed(rank)
    for step in range(4):  # two of them pruned
        hook.before_train_iter(runner, step)
        features, decisions = network(torch.randn(2, 3, 8, 16, 16))
        ratio = decisions[..., 0].sum(1) / decisions[..., 1].sum(1)
        (features.mean() + ratio.mean()).backward()
        hook.after_train_iter(runner, step)
        gradients = [p.grad for p in network.parameters()]
        assert all(g is not None for g in gradients)
        if step < 3:
            network.zero_grad()
    for name, layer in layers.items():
        left = (0, 1, 2) if name.startswith('layer1') else (1, 2)
        assert layer.in_use.channel == left, name
    for gradient in gradients:  # the mean of both
        other = gradient.clone()
        torch.distributed.broadcast(other, 0)
        assert torch.equal(gradient, other)
    leave_process_group()


def test_an_option_stays_that_another_process_uses_and_training_goes_on(tmp_path):
    arguments = (tmp_path / 'rendezvous',)
    multiprocessing.start_processes(_train_a_part, arguments, nprocs=2, start_method='fork')


@pytest.mark.parametrize(('unused_for', 'warns'), [(5, False), (6, True)])
def test_a_training_that_is_too_short_to_prune_is_told(unused_for, warns, caplog):
    runner = SimpleNamespace(
        model=dynamic('ResNet3d'),
        hooks=[],
        max_iters=20,
        train_dataloader=range(10),
        logger=logging.getLogger(),
    )
    PruneOptionsHook(unused_for, begin=1.5).before_train(runner)
    assert ('training ends before anything is pruned' in caplog.text) == warns
