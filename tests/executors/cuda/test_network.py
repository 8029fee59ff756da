# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Networks executed on a GPU, and their CUDA graphs."""

import copy
import pickle

import pytest
import torch

from vared2_mmaction import optimize
from vared2_mmaction.deploy.graphs import Graphs, capture
from vared2_mmaction.models import dynamic_layers, force_policies, to_static

from ...models.backbones import SHORT, STOCK, dynamic
from ...models.comparing import clips, randomise, randomise_norms, relative
from .device import DEVICE, EXACT, needs_gpu, needs_kernels


@pytest.fixture(autouse=True)
def _exact():
    with torch.backends.cudnn.flags(**EXACT), torch.no_grad():
        yield


def network(name, **kwargs):
    """A network in evaluation mode that decides otherwise for each clip and layer."""
    net = dynamic(name, **kwargs)
    randomise(net)
    randomise_norms(net)
    net.eval()  # does not return the module in stock backbones
    return net.to(DEVICE)


def policy(net, clips_number):
    return torch.randint(0, 3, (clips_number, len(dynamic_layers(net)), 2))


def check(found, expected):
    assert relative(found[0], expected[0]) <= 1e-4
    assert torch.equal(found[1][..., :5], expected[1][..., :5])


@needs_kernels
def test_a_network():
    net = network('ResNet2Plus1d', **{**SHORT['ResNet2Plus1d'], 'stage_blocks': (1, 1)})
    fast = optimize(net, executor='cuda')
    assert {layer.executed_by for layer in dynamic_layers(fast).values()} == {'cuda'}
    x = torch.randn(2, 3, 4, 12, 12, device=DEVICE)
    check(fast(x), net(x))
    forced = policy(net, 2)
    with force_policies(net, forced), force_policies(fast, forced):
        check(fast(x), net(x))


@needs_gpu
@pytest.mark.parametrize('name', STOCK)
def test_captured_networks(name):
    net, x = network(name), clips(name).cuda()
    fast = capture(optimize(net, executor='cuda'))
    for _ in range(2):  # captured, then replayed
        x.normal_()
        check(fast(x), net(x))
    assert len(fast.forward.by_key) == 1
    for _ in range(2):
        forced = policy(net, len(net(x)[1]) // (net.clip_length or 1))
        with force_policies(net, forced), force_policies(fast, forced):
            check(fast(x), net(x))
    assert len(fast.forward.by_key) == 2


@needs_gpu
def test_graphs_are_kept_by_shape(monkeypatch):
    monkeypatch.setattr('vared2_mmaction.deploy.graphs.MAX_GRAPHS', 2)
    fast = capture(optimize(network('ResNet2Plus1d')))
    first = fast(torch.randn(2, 3, 8, 40, 40, device='cuda'))
    kept = first[0].clone()
    fast(torch.randn(2, 3, 8, 40, 40, device='cuda'))
    assert torch.equal(first[0], kept)  # what was returned is the caller's
    for frames in (4, 6):
        fast(torch.randn(1, 3, frames, 40, 40, device='cuda'))
    assert len(fast.forward.by_key) == 2
    assert not pickle.loads(pickle.dumps(copy.deepcopy(fast))).forward.by_key


@needs_gpu
def test_the_captured_stock_network():
    net = network('ResNet3d')
    twin, x = to_static(net), clips('ResNet3d').cuda()
    fast = capture(optimize(twin))
    for context in (torch.inference_mode(), torch.no_grad()):  # captured, then replayed
        with context:
            assert relative(fast(x.clone()), twin(x)) <= 1e-4
    assert len(fast.forward.by_key) == 1


@needs_gpu
def test_decisions_never_wait_for_the_host():
    net, x = network('ResNet2Plus1d'), clips('ResNet2Plus1d').cuda()
    fast = optimize(net)
    for run in (fast, net):
        run(x)
        torch.cuda.set_sync_debug_mode('error')
        try:
            run(x)
        finally:
            torch.cuda.set_sync_debug_mode('default')


def test_a_captured_network_runs_elsewhere_as_ever():
    net = network('ResNet2Plus1d').cpu()
    twin, x = copy.deepcopy(net), clips('ResNet2Plus1d')
    captured = capture(net)
    assert isinstance(captured.forward, Graphs)
    found, expected = captured(x), twin(x)
    assert torch.equal(found[0], expected[0])
    assert captured.forward.by_key == {}
    with torch.enable_grad():
        assert captured(x)[0].requires_grad


def test_copies_capture_their_own():
    net = capture(dynamic('ResNet2Plus1d'))
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert twin.forward.backbone is twin
        assert twin.forward is not net.forward
        assert twin.forward.layers() == list(dynamic_layers(twin).values())
        assert twin.forward.layers() != net.forward.layers()
        assert twin.state_dict().keys() == net.state_dict().keys()


def test_layers_that_ask_the_host_cannot_be_captured():
    with pytest.raises(ValueError, match=r'layer1\.0\.conv1.*: expected a layer that decides'):
        capture(optimize(dynamic('ResNet2Plus1d'), executor='eager'))
