# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Training as CUDA graphs is training; without a GPU it is left alone."""

import copy
import weakref

import pytest
import torch
from torch import nn

from vared2_mmaction.deploy.training_graphs import TrainingGraphs
from vared2_mmaction.models import blocks, dynamic_layers

from ..executors.cuda.device import EXACT, needs_gpu
from ..models.backbones import dynamic

CLIPS = 2, 3, 8, 32, 32


class Pretended(TrainingGraphs):
    """On a CPU; what is captured is called, after calls that warm up."""

    def serves(self, x):
        return True


def pretend(run, args, **kwargs):
    # Leaves of the network belong to the default stream, which nothing captured may wait on.
    assert len(args) > 1
    assert not any(isinstance(leaf, nn.Parameter) for leaf in args)
    for _ in range(3):
        run(*args)
    return run


@pytest.fixture(params=['cpu', pytest.param('cuda', marks=needs_gpu)])
def device(request, monkeypatch):
    if request.param == 'cpu':
        monkeypatch.setattr(torch.cuda, 'make_graphed_callables', pretend)
    with torch.backends.cudnn.flags(**EXACT):
        yield request.param


def network(device='cpu', **kwargs):
    torch.manual_seed(0)
    sizes = {'num_stages': 2, 'stage_blocks': (1, 1), 'out_indices': (1,), 'dilations': (1, 1)}
    sizes |= {'spatial_strides': (1, 2), 'temporal_strides': (1, 2), 'base_channels': 4}
    net = dynamic('ResNet2Plus1d', **sizes, **kwargs)
    net.train()
    return net.to(device)


def graphs_of(net):
    on_gpu = next(net.parameters()).is_cuda
    return (TrainingGraphs if on_gpu else Pretended)(net)


def batches(number, device, shape=CLIPS):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).to(device) for _ in range(number)]


def step(run, x):
    found = run(x)
    loss = found.features.square().mean() + found.decisions[..., 0].mean() * 1e-9
    loss.backward()
    return found


def train(run, net, xs, accumulate=1):
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    found = []
    for n, x in enumerate(xs):
        found.append(step(run, x))
        if (n + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return found


def test_on_a_cpu_a_backbone_runs_as_ever():
    net = network()
    graphs = TrainingGraphs(net)
    (x,) = batches(1, 'cpu')
    expected = copy.deepcopy(net)(x)
    found = graphs(x)
    assert not graphs.is_captured
    assert torch.equal(found.features, expected.features)


@pytest.mark.parametrize('accumulate', [1, 3])
@pytest.mark.parametrize('autocast', [False, True])
def test_trains_alike(device, accumulate, autocast):
    plain, own = network(device), network(device)
    graphs, xs = graphs_of(own), batches(6, device)
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        expected = train(plain, plain, xs, accumulate)
        found = train(graphs, own, xs, accumulate)
    assert graphs.is_captured
    limit = 5e-2 if autocast else 1e-3
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.features, b.features, rtol=limit, atol=limit)
    for a, b in zip(own.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=limit, atol=limit)


def test_blocks_that_run_again_train_alike(device):
    plain, own = network(device, with_cp=True), network(device, with_cp=True)
    graphs, xs = graphs_of(own), batches(3, device)
    for a, b in zip(train(graphs, own, xs), train(plain, plain, xs), strict=True):
        torch.testing.assert_close(a.features, b.features, rtol=1e-3, atol=1e-3)
    assert graphs.is_captured


def test_blocks_are_captured_without_the_state_of_random_numbers(monkeypatch):
    net, (x,) = network(with_cp=True), batches(1, 'cpu')
    monkeypatch.setattr(blocks, 'is_capturing', lambda: True)
    monkeypatch.setattr(torch, 'get_rng_state', None)  # nobody calls it
    step(net, x)


@pytest.mark.filterwarnings('ignore:Grad strides do not match bucket view strides')
def test_trains_alike_within_distributed_data_parallel(device, tmp_path):
    plain, own = network(device), network(device)
    own.forward = graphs = graphs_of(own)
    backend = 'nccl' if device == 'cuda' else 'gloo'
    store = f'file://{tmp_path / "store"}'
    torch.distributed.init_process_group(backend, store, rank=0, world_size=1)
    try:
        if device == 'cuda':
            own = nn.SyncBatchNorm.convert_sync_batchnorm(own)
        parallel = nn.parallel.DistributedDataParallel(own)
        xs = batches(4, device)
        for a, b in zip(train(parallel, own, xs), train(plain, plain, xs), strict=True):
            torch.testing.assert_close(a.features, b.features, rtol=1e-3, atol=1e-3)
    finally:
        torch.distributed.destroy_process_group()
    assert graphs.is_captured


@needs_gpu
@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('captured', [False, True])
def test_a_step_never_waits_for_the_host(captured, autocast):
    net = network('cuda')
    net.option_counts = torch.zeros(len(net.dynamic_layers), 2, 5, dtype=torch.int64, device='cuda')
    run, (x,) = graphs_of(net) if captured else net, batches(1, 'cuda')
    with torch.autocast('cuda', torch.bfloat16, enabled=autocast):
        for _ in range(3):
            step(run, x)
        torch.cuda.set_sync_debug_mode('error')
        try:
            step(run, x)
        finally:
            torch.cuda.set_sync_debug_mode('default')


def test_statistics_are_those_of_the_batches(device):
    own = network(device)
    own.option_counts = torch.zeros(len(own.dynamic_layers), 2, 5, dtype=torch.int64, device=device)
    graphs = graphs_of(own)
    for x in batches(4, device):
        step(graphs, x)
    norms = [m for m in own.modules() if isinstance(m, nn.BatchNorm3d)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {4}
    assert (own.option_counts[..., -1] == 4 * CLIPS[0]).all()


def test_outputs_stay_when_others_follow(device):
    graphs = graphs_of(network(device))
    xs = batches(5, device)
    found = [step(graphs, x) for x in xs[:4]]
    kept = found[2].features.detach().clone()
    step(graphs, xs[4])
    assert torch.equal(found[2].features, kept)
    assert not torch.equal(found[2].features, found[3].features)


def test_two_passes_before_the_gradients(device):
    plain, own = network(device), network(device)
    graphs, xs = graphs_of(own), batches(5, device)
    for x in xs[:2]:
        step(graphs, x)
        step(plain, x)
    for net, run in ((plain, plain), (own, graphs)):
        net.zero_grad()
        first, second = run(xs[2]), run(xs[3])
        (first.features.square().mean() + second.features.mean()).backward()
    for a, b in zip(own.parameters(), plain.parameters(), strict=True):
        if b.grad is not None and b.grad.abs().max() > 1e-6:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-2, atol=1e-4)


def test_passes_whose_gradients_are_waited_for_are_not_written_over(device):
    own = network(device)
    graphs, xs = graphs_of(own), batches(4, device)
    for x in xs[:2]:
        step(graphs, x)
    replay, replays = graphs._graph, []
    graphs._graph = lambda *given: replays.append(given) or replay(*given)
    passes = [graphs(x) for x in xs[:3]]
    assert len(replays) == 1
    sum(found.features.mean() for found in passes).backward()
    passes = graphs(xs[3])
    assert len(replays) == 2
    del passes  # nobody asks for its gradients
    step(graphs, xs[3])
    assert len(replays) == 3


def test_a_backbone_that_does_not_learn_runs_as_ever(device):
    own = network(device).requires_grad_(False)
    graphs = graphs_of(own)
    for x in batches(3, device):
        graphs(x)
    assert not graphs.is_captured


def test_what_is_released_is_gone():
    graphs = graphs_of(network())
    graphs._graph = cycle = type('Graph', (), {})
    kept, cycle.own = weakref.ref(cycle), cycle
    del cycle
    graphs.release()
    assert kept() is None


def test_begins_anew_when_options_are_pruned(device):
    own = network(device)
    graphs, xs = graphs_of(own), batches(5, device)
    for x in xs[:3]:
        step(graphs, x)
    assert graphs.is_captured
    for layer in dynamic_layers(own).values():
        layer.channel_options.use((1,))
    found = step(graphs, xs[3])
    assert not graphs.is_captured
    executed, static = found.decisions[:, 1:, :2].sum((0, 1))  # of dynamic layers
    assert executed < 0.8 * static
    step(graphs, xs[4])
    assert graphs.is_captured


def test_begins_anew_when_parameters_stop_to_learn(device):
    own = network(device)
    graphs, xs = graphs_of(own), batches(4, device)
    for x in xs[:3]:
        step(graphs, x)
    own.conv1.conv.conv_s.weight.requires_grad_(False)
    own.zero_grad()
    step(graphs, xs[3])
    assert not graphs.is_captured
    assert own.conv1.conv.conv_s.weight.grad is None


def test_begins_anew_when_parameters_lie_elsewhere(device):
    own = network(device)
    graphs, xs = graphs_of(own), batches(3, device)
    for x in xs[:2]:
        step(graphs, x)
    assert graphs.is_captured
    own.conv1.conv.conv_s.weight.data = own.conv1.conv.conv_s.weight.detach().clone()
    step(graphs, xs[2])
    assert not graphs.is_captured


def test_other_shapes_and_evaluation_run_as_ever(device):
    own = network(device)
    graphs = graphs_of(own)
    for x in batches(3, device):
        step(graphs, x)
    (small,) = batches(1, device, (1, 3, 8, 64, 64))
    assert step(graphs, small).features.shape[0] == 1
    assert graphs.is_captured
    own.eval()
    with torch.no_grad():
        expected = type(own).forward(own, small).features
        assert torch.equal(graphs(small).features, expected)


def test_copies_have_graphs_of_their_own(device):
    own = network(device)
    own.forward = graphs_of(own)
    twin = copy.deepcopy(own)
    assert twin.forward.backbone is twin
