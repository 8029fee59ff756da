# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Training as CUDA graphs is training; without a GPU it is left alone."""

import copy

import pytest
import torch
from torch import nn

from vared2_mmaction.deploy.training_graphs import TrainingGraphs
from vared2_mmaction.models import dynamic_layers

from ..executors.cuda.device import needs_gpu
from ..models.backbones import dynamic

CLIPS = 2, 3, 8, 32, 32


def network(device='cuda'):
    torch.manual_seed(0)
    net = dynamic('ResNet2Plus1d')
    net.train()
    return net.to(device)


def batches(number, device='cuda', shape=CLIPS):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).to(device) for _ in range(number)]


def step(run, x, accumulate=False):
    found = run(x)
    loss = found.features.square().mean() + found.decisions[..., 0].mean() * 1e-9
    loss.backward()
    return found


def test_on_a_cpu_a_backbone_runs_as_ever():
    net = network('cpu')
    graphs = TrainingGraphs(net)
    (x,) = batches(1, 'cpu')
    expected = copy.deepcopy(net)(x)
    found = graphs(x)
    assert not graphs.is_captured
    assert torch.equal(found.features, expected.features)


@needs_gpu
class TestGraphs:
    def train(self, run, net, xs, accumulate=1):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
        found = []
        for n, x in enumerate(xs):
            found.append(step(run, x))
            if (n + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
        return found

    @pytest.mark.parametrize('accumulate', [1, 2, 3])
    @pytest.mark.parametrize('autocast', [False, True])
    def test_trains_alike(self, accumulate, autocast):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        plain, own = network(), network()
        graphs = TrainingGraphs(own)
        xs = batches(6)
        with torch.autocast('cuda', torch.bfloat16, enabled=autocast):
            expected = self.train(plain, plain, xs, accumulate)
            found = self.train(graphs, own, xs, accumulate)
        assert graphs.is_captured
        limit = 5e-2 if autocast else 1e-3
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.features, b.features, rtol=limit, atol=limit)
        for (name, a), b in zip(own.state_dict().items(), plain.state_dict().values(), strict=True):
            torch.testing.assert_close(
                a, b, rtol=limit, atol=limit, msg=lambda m, n=name: f'{n}: {m}'
            )

    def test_statistics_are_those_of_the_batches(self):
        own = network()
        graphs = TrainingGraphs(own)
        for x in batches(4):
            step(graphs, x)
        counted = {
            int(m.num_batches_tracked) for m in own.modules() if isinstance(m, nn.BatchNorm3d)
        }
        assert counted == {4}

    def test_outputs_stay_when_others_follow(self):
        graphs = TrainingGraphs(network())
        found = [step(graphs, x) for x in batches(4)]
        kept = found[2].features.detach().clone()
        step(graphs, batches(5)[4])
        assert torch.equal(found[2].features, kept)
        assert not torch.equal(found[2].features, found[3].features)

    def test_two_passes_before_the_gradients(self):
        plain, own = network(), network()
        graphs = TrainingGraphs(own)
        xs = batches(4)
        for x in xs[:2]:
            step(graphs, x), step(plain, x)
        for net, run in ((plain, plain), (own, graphs)):
            net.zero_grad()
            first, second = run(xs[2]), run(xs[3])
            (first.features.square().mean() + second.features.mean()).backward()
        for a, b in zip(own.parameters(), plain.parameters(), strict=True):
            if b.grad is not None and b.grad.abs().max() > 1e-6:
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-2, atol=1e-4)

    def test_begins_anew_when_options_are_pruned(self):
        own = network()
        graphs = TrainingGraphs(own)
        xs = batches(5)
        for x in xs[:3]:
            step(graphs, x)
        for layer in dynamic_layers(own).values():
            layer.channel_options.use((1,))
        assert graphs.is_captured
        found = step(graphs, xs[3])
        assert not graphs.is_captured
        share = found.decisions[..., 0].sum() / found.decisions[..., 1].sum()
        assert share < 0.8
        step(graphs, xs[4])
        assert graphs.is_captured

    def test_other_shapes_and_evaluation_run_as_ever(self):
        own = network()
        graphs = TrainingGraphs(own)
        for x in batches(3):
            step(graphs, x)
        small = batches(1, shape=(1, 3, 8, 32, 32))[0]
        assert step(graphs, small).features.shape[0] == 1
        assert graphs.is_captured
        own.eval()
        with torch.no_grad():
            expected = type(own).forward(own, small).features
            assert torch.equal(graphs(small).features, expected)
