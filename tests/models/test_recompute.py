# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Maps that are made again in the backward pass."""

import copy
import weakref

import pytest
import torch
from torch import nn

from benchmarking.memory import peak_bytes, state_tensors
from vared2_mmaction import dynamize, force_policy
from vared2_mmaction.models import dynamic_layers, force_policies
from vared2_mmaction.ops import recompute

from ..compiling import needs_compiler
from .backbones import STOCK, dynamic, listed
from .test_backbones import clips

ways = pytest.mark.parametrize(
    'compiled', [False, pytest.param(True, marks=needs_compiler)], ids=['general', 'compiled']
)


def step(net, x):
    net.zero_grad()
    with torch.random.fork_rng():
        torch.manual_seed(0)  # dropout
        features, decisions = net(x)
    (sum(y.square().mean() for y in listed(features)) + 1e-9 * decisions[..., 0].sum()).backward()
    return [p.grad for p in net.parameters() if p.grad is not None]


def pair(net):
    """The same network, one that keeps and one that recomputes."""
    twins = net, copy.deepcopy(net)
    for twin, recomputes in zip(twins, (False, True), strict=True):
        twin.recompute = recomputes
    return twins


@ways
@pytest.mark.parametrize('kind', ['affine', 'depthwise'])
@pytest.mark.parametrize('name', STOCK)
def test_gradients_are_the_same(name, kind, compiled):
    options = {'channel_operation': kind, 'temporal_operation': kind, 'compiled': compiled}
    net = dynamic(name, {**options, 'recompute': True})
    net.train()
    keeping, recomputing = pair(net)
    x = clips(name)
    layers = len(dynamic_layers(keeping))
    expected, found = step(keeping, x), step(recomputing, x)
    assert len(found) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    policy = torch.tensor([[1, 1]] * layers)[None]  # nothing is blended, all is rebuilt
    with force_policies(keeping, policy), force_policies(recomputing, policy):
        pairs = zip(step(recomputing, x), step(keeping, x), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


class Plain(nn.Module):
    """Convolutions with and without normalisation behind them."""

    def __init__(self, norm=True, inplace=False, rank=3):
        super().__init__()
        conv, batch_norm = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}[rank]
        self.first = conv(3, 8, 1)
        self.layers = nn.ModuleList(conv(8, 8, 1) for _ in range(6))
        self.norm = batch_norm(8) if norm else nn.Identity()
        self.inplace = inplace

    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            x = torch.relu_(self.norm(layer(x))) if self.inplace else self.norm(layer(x)).relu()
        return x


@ways
@pytest.mark.parametrize('rank', [2, 3])
@pytest.mark.parametrize('policy', ['blended', 'rebuilt'])
def test_memory_is_saved(policy, rank, compiled):
    net = Plain(inplace=True, rank=rank)
    net = dynamize(net, compiled=compiled, recompute=True, num_segments=8).train()
    peaks, x = [], torch.randn(2, 3, 8, 16, 16)
    x = x if rank == 3 else x.transpose(1, 2).flatten(0, 1)
    for twin in pair(net):
        with force_policy(twin, 1, 0) if policy == 'rebuilt' else torch.enable_grad():
            existing = [*state_tensors(twin), x]
            peaks.append(peak_bytes(lambda twin=twin: step(twin, x), torch.device('cpu'), existing))
    map_size = 2 * 8 * 8 * 16 * 16 * 4
    assert peaks[0] - peaks[1] > 4 * map_size  # of six layers


@ways
def test_maps_that_were_written_over_are_kept(compiled):
    net = dynamize(Plain(norm=False, inplace=True), compiled=compiled, recompute=True).train()
    x = torch.randn(2, 3, 8, 6, 6)
    expected, found = (step(twin, x) for twin in pair(net))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_nothing_is_offered_outside_a_scope():
    z = torch.randn(3, requires_grad=True)
    made = []

    def make(z):
        made.append(z)
        return 2 * z

    y = make(z)
    recompute.offer(y, make, z)
    (y * y).sum().backward()
    assert len(made) == 1
    with recompute.recomputing():
        y = make(z)
        recompute.offer(y, make, z)
        loss = (y * y).sum()
    z.grad = None
    loss.backward()
    assert len(made) == 4  # twice once more, for both factors
    torch.testing.assert_close(z.grad, 8 * z)
    with torch.no_grad(), recompute.recomputing():
        recompute.offer(y, make, z)


@ways
def test_nothing_stays_behind(compiled):
    net = dynamize(Plain(inplace=True), compiled=compiled, recompute=True).train()
    maps = []
    for layer in dynamic_layers(net).values():
        layer.register_forward_hook(lambda *args: maps.append(weakref.ref(args[-1])))
    net.norm.register_forward_hook(lambda *args: maps.append(weakref.ref(args[-1])))
    x = torch.randn(2, 3, 8, 6, 6)
    step(net, x)
    net(x)  # whose backward pass never comes
    assert len(maps) == 24
    assert all(kept() is None for kept in maps)
