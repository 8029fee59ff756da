# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Every parameter has a gradient after a step, whatever of it was not executed.

``DistributedDataParallel`` waits for all of them.
"""

import itertools
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from studies.random_gate import keyed_by
from vared2_mmaction import dynamize, force_policy
from vared2_mmaction.checkpoints.loading import is_own_parameter
from vared2_mmaction.models import dynamic_layers, force_policies
from vared2_mmaction.ops import Modulation

from ..compiling import needs_compiler
from .backbones import STOCK, dynamic, listed

SMALL = {
    **{'num_stages': 2, 'stage_blocks': (1, 1), 'out_indices': (1,), 'dilations': (1, 1)},
    **{'spatial_strides': (1, 2), 'temporal_strides': (1, 2)},
}


class PartlyUsedGate(nn.Module):
    """Of another kind: all options open, by some of its parameters, or by none."""

    def __init__(self, channel_options, constant):
        super().__init__()
        self.channel_options, self.constant = channel_options, constant
        self.used, self.unused = (nn.Parameter(torch.ones(1)) for _ in range(2))

    def macs(self):
        return 0

    def forward(self, x, temporal_options):
        one = self.used.detach() if self.constant else self.used
        numbers = (self.channel_options, temporal_options)
        return Modulation(*((one / 2).expand(len(x), n) for n in numbers))


def close(net, which):
    """Gates that close options: 'dear' ones, 'cheap' ones, or others for 'each' clip."""
    for layer in dynamic_layers(net).values():
        gate = layer.gate
        with torch.no_grad():
            gate.fc2.bias.fill_(-5)
            first = (0, gate.channel_options)
            last = (gate.channel_options - 1, gate.channel_options + gate.temporal_options - 1)
            if which == 'each':
                gate.fc2.bias.zero_()
                gate.fc2.weight.normal_(std=5)
            else:
                gate.fc2.bias[list(last if which == 'dear' else first)] = 5


def use_few(net):
    """Take options out of use, others in each layer."""
    choices = [(0,), (1,), (0, 2), (1, 2), (2,)]
    for n, layer in enumerate(dynamic_layers(net).values()):
        channel, temporal = layer.num_options
        layer.channel_options.use(i % channel for i in choices[n % 5])
        layer.temporal_options.use(j % temporal for j in choices[n // 2 % 5])


def forced_each(net):
    layers = len(dynamic_layers(net))
    return force_policies(net, torch.randint(3, (2, layers, 2)))


def forced_some(net):
    """A policy on every other layer."""
    return force_policy(nn.ModuleList(list(dynamic_layers(net).values())[::2]), 1, 2)


POLICIES = {
    'free': lambda net: nullcontext(),
    'dear closed': lambda net: close(net, 'dear') or nullcontext(),
    'cheap closed': lambda net: close(net, 'cheap') or nullcontext(),
    'mixed': lambda net: close(net, 'each') or nullcontext(),
    'few in use': lambda net: use_few(net) or nullcontext(),
    'channel 0 temporal 0': lambda net: force_policy(net, 0, 0),
    'channel 1 temporal 0': lambda net: force_policy(net, 1, 0),
    'channel 0 temporal 2': lambda net: force_policy(net, 0, 2),
    'channel 2 temporal 1': lambda net: force_policy(net, 2, 1),
    'forced each': forced_each,
    'forced some': forced_some,
}
OPTIONS = {
    'default': {},
    'channel only': {'temporal': 1},
    'temporal only': {'channel': 1},
}


def step(net, x, context=None):
    """Forward and backward pass; the names of parameters whose gradient is wrong."""
    net.train()
    with context or nullcontext():
        features, decisions = net(x)
        # Within the context, as checkpointed blocks are run again.
        (sum(f.sum() for f in listed(features)) + decisions[..., 0].sum()).backward()
    return [key for key, p in net.named_parameters() if p.requires_grad == (p.grad is None)]


@pytest.mark.parametrize(
    ('options', 'policy'),
    [
        *(('default', policy) for policy in POLICIES),
        *itertools.product(list(OPTIONS)[1:], ['mixed', 'few in use', 'channel 2 temporal 1']),
    ],
)
def test_every_policy_of_every_kind(options, policy):
    net = dynamic('ResNet2Plus1d', OPTIONS[options], **SMALL)
    assert step(net, torch.randn(2, 3, 8, 16, 16), POLICIES[policy](net)) == []


@needs_compiler
@pytest.mark.parametrize('policy', POLICIES)
def test_compiled_mixing(policy):
    net = dynamic('ResNet2Plus1d', {'compiled': True}, **SMALL)
    assert step(net, torch.randn(2, 3, 8, 16, 16), POLICIES[policy](net)) == []


@pytest.mark.parametrize('policy', ['free', 'mixed', 'channel 1 temporal 0', 'forced some'])
@pytest.mark.parametrize(
    ('frames', 'clips', 'more'), [(8, 1, {}), (1, 2, {}), (8, 2, {'with_cp': True})], ids=str
)
def test_short_or_single_clips_and_checkpointed_blocks(policy, frames, clips, more):
    net = dynamic('ResNet2Plus1d', **SMALL, **more)
    assert step(net, torch.randn(clips, 3, frames, 40, 40), POLICIES[policy](net)) == []


@pytest.mark.parametrize('policy', ['free', 'dear closed', 'mixed', 'channel 2 temporal 1'])
@pytest.mark.parametrize('name', ['ResNet', 'X3D', 'ResNet3dSlowFast'])
def test_other_networks(name, policy):
    net = dynamic(name)
    assert step(net, torch.randn(STOCK[name][1]), POLICIES[policy](net)) == []


@pytest.mark.parametrize('constant', [False, True])
def test_gates_of_another_kind(constant):
    net = dynamic('ResNet2Plus1d', **SMALL)
    for layer in dynamic_layers(net).values():
        layer.gate = PartlyUsedGate(len(layer.channel_options.kept), constant)
    assert step(net, torch.randn(2, 3, 8, 16, 16)) == []


def test_drawn_policies():
    gate = {'type': 'RandomPolicyGate', 'thrift': 0.7}
    net, x = dynamic('ResNet2Plus1d', {'gate': gate}, **SMALL), torch.randn(2, 3, 8, 16, 16)
    assert step(net, x, keyed_by(x)) == []


@pytest.mark.parametrize('policy', ['free', 'channel 1 temporal 0'])
def test_what_is_frozen_gets_no_gradient(policy):
    net = dynamic('ResNet2Plus1d', frozen_stages=1, **SMALL)
    for number, layer in enumerate(dynamic_layers(net).values()):
        layer.gate.fc1.requires_grad_(number % 2 == 0)
        layer.channel_options.requires_grad_(number % 3 == 0)
        layer.weight.requires_grad_(number % 4 == 0)
    assert step(net, torch.randn(2, 3, 8, 16, 16), POLICIES[policy](net)) == []


class Unusual(nn.Module):
    """Layers that run twice with other policies, without gradients, or never."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice, self.once, self.without, self.never = (
            nn.Conv3d(4, 4, 3, padding=1) for _ in range(5)
        )

    def forward(self, x):
        x = self.twice(self.stem(x))
        x = self.twice(x[:, :, :2])  # of fewer frames, with fewer options
        with torch.no_grad():
            kept = self.without(x)
        return self.once(x) + kept


@pytest.mark.parametrize('policy', POLICIES)
def test_layers_that_run_twice_without_gradients_or_never(policy):
    net = dynamize(Unusual(), layers='twice|once|without|never')
    for name in ('without', 'never'):
        for parameter in (layer := net.get_submodule(name)).weight, layer.bias:
            parameter.requires_grad_(False)  # a stock network would not train them either
    x = torch.randn(2, 4, 8, 5, 5)
    assert step(net, x, POLICIES[policy](net)) == []
    never = [p.grad for p in net.never.parameters() if p.requires_grad]
    assert never
    assert not any(grad.any() for grad in never)


@pytest.mark.parametrize('policy', ['few in use', 'channel 2 temporal 1'])
def test_only_what_is_unused_has_a_gradient_of_zero(policy):
    net, x = dynamic('ResNet2Plus1d', **SMALL), torch.randn(2, 3, 8, 16, 16)
    with POLICIES[policy](net):
        assert step(net, x) == []
        for layer in dynamic_layers(net).values():
            for part, in_use in zip(
                (layer.channel_options, layer.temporal_options), layer.in_use, strict=True
            ):
                for option, operation in enumerate(part.cheap, 1):
                    if option not in in_use:
                        assert not any(p.grad.any() for p in operation.parameters())
            single = all(len(which) == 1 for which in layer.in_use)
            if single or layer.forced is not None:
                assert not any(p.grad.any() for p in layer.gate.parameters())
            else:
                assert layer.gate.fc2.bias.grad.any()


def test_own_parameters_are_gates_and_cheap_operations():
    net = dynamize(Unusual(), layers='never')
    own = {key for key, _ in net.named_parameters() if is_own_parameter(key)}
    net(torch.randn(2, 4, 8, 5, 5))
    net.train()
    net(torch.randn(2, 4, 8, 5, 5))[1].sum().backward()
    assert {key for key, p in net.named_parameters() if p.grad is not None} == own


def test_a_layer_that_runs_twice_is_charged_for_both_and_has_decided_the_dearer():
    net = dynamize(Unusual(), layers='twice').eval()
    x = torch.randn(2, 4, 8, 5, 5)
    with torch.no_grad(), force_policy(net, 1, 2):
        rows = net(x).decisions[:, 1, :5]
    once = 4 * 4 * 27 * 5 * 5
    # Of two frames there is one option less, which computes one of them.
    assert rows.tolist() == [[2 * (2 + 1) / 4 * once, (8 + 2) * once, rows[0, 2].item(), 1, 1]] * 2
    with torch.no_grad(), force_policy(net, 1, 1):
        assert net(x).decisions[:, 1, 3:5].tolist() == [[1, 1]] * 2
