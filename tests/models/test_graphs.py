# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Networks by Triton kernels, and their CUDA graphs."""

import copy
import pickle
import sys
from types import SimpleNamespace

import pytest
import torch

from vared2_mmaction.models import (
    accelerate,
    capture,
    dynamic_layers,
    force_policies,
    fuse,
    masking,
    to_static,
)
from vared2_mmaction.models.execution import by_kernels, by_operations, can_execute, execution_on
from vared2_mmaction.models.graphs import Graphs
from vared2_mmaction.ops import gpu

from ..ops.gpu.device import EXACT, needs_kernels
from .backbones import STOCK, dynamic
from .test_backbones import clips, randomise, randomise_norms, relative

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')


def network(name, **options):
    net = dynamic(name, options)
    randomise(net)
    randomise_norms(net)
    net.eval()
    return net


@needs_kernels
@pytest.mark.parametrize('decided', [True, False], ids=['decided', 'open'])
def test_a_network_by_kernels(decided):
    pytest.importorskip('triton', minversion=gpu.OLDEST)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    net = network('ResNet2Plus1d').to(device)
    x = torch.randn(2, 3, 4, 12, 12, device=device)
    fused = fuse(net, by_kernels())
    policy = torch.randint(0, 3, (2, len(dynamic_layers(net)), 2))
    with torch.no_grad(), torch.backends.cudnn.flags(**EXACT):
        if decided:
            expected, found = net(x), fused(x)
        else:
            with force_policies(net, policy), force_policies(fused, policy):
                expected, found = net(x), fused(x)
    assert relative(found[0], expected[0]) <= 1e-4
    assert torch.equal(found[1], expected[1])
    assert all(layer.compiled._made for layer in dynamic_layers(fused).values())


@needs_gpu
@pytest.mark.parametrize('name', STOCK)
def test_captured_networks_equal_the_unfused(name):
    net, x = network(name).cuda(), clips(name).cuda()
    policies = [torch.randint(0, 3, (2, len(dynamic_layers(net)), 2)) for _ in range(2)]
    kinds = [by_kernels(), by_operations()]
    with torch.no_grad(), torch.backends.cudnn.flags(**EXACT):
        served = name not in ('X3D', 'ResNet3dCSN')  # whose grouped convolutions ask the host
        fused = fuse(net, kinds[0])
        if served:
            fused = capture(fused)
        for _ in range(2):  # captured, then replayed
            x.normal_()
            features, decisions = net(x)
            found, again = fused(x)
            assert relative(found, features) <= 1e-4
            assert torch.equal(again[..., :5], decisions[..., :5])
        for policy in policies:
            with force_policies(net, policy), force_policies(fused, policy):
                assert relative(fused(x)[0], net(x)[0]) <= 1e-4
                with masking(fused):
                    assert relative(fused(x)[0], net(x)[0]) <= 1e-4


@needs_gpu
def test_graphs_are_kept_by_shape_and_policy(monkeypatch):
    monkeypatch.setattr('vared2_mmaction.models.graphs.MAX_GRAPHS', 2)
    fused = capture(fuse(network('ResNet2Plus1d').cuda(), compiled=True))
    with torch.no_grad():
        first = fused(torch.randn(2, 3, 8, 40, 40, device='cuda'))
        kept = first[0].clone()
        fused(torch.randn(2, 3, 8, 40, 40, device='cuda'))
        assert torch.equal(first[0], kept)  # what was returned is the caller's
        for frames in (4, 6):
            fused(torch.randn(1, 3, frames, 40, 40, device='cuda'))
    assert len(fused.graphs.by_key) == 2
    assert not pickle.loads(pickle.dumps(copy.deepcopy(fused))).graphs.by_key


@needs_gpu
def test_the_captured_stock_network():
    net = network('ResNet3d').cuda()
    twin, x = to_static(net), clips('ResNet3d').cuda()
    fused = capture(fuse(accelerate(copy.deepcopy(twin)), compiled=True))
    with torch.backends.cudnn.flags(**EXACT):
        for context in (torch.inference_mode(), torch.no_grad()):  # captured, then replayed
            with context:
                assert relative(fused(x.clone()), twin(x)) <= 1e-4
    assert len(fused.graphs.by_key) == 1


def test_layers_that_ask_the_host_cannot_be_captured():
    net = network('ResNet2Plus1d')
    for fused in (net, fuse(net)):
        with pytest.raises(ValueError, match=r'layer1\.0\.conv1.*: expected a layer that decides'):
            capture(fused)


def test_a_captured_network_runs_elsewhere_as_ever():
    net = network('ResNet2Plus1d')
    twin, x = to_static(net), clips('ResNet2Plus1d')
    captured = capture(accelerate(copy.deepcopy(twin)))
    assert type(captured).__name__.startswith('Captured')
    with torch.no_grad():
        assert relative(captured(x), twin(x)) <= 1e-4
    assert captured.graphs.by_key == {}


def test_layers_are_looked_for_once_and_copies_look_for_their_own():
    net = network('ResNet2Plus1d')
    graphs = Graphs()
    found = graphs.layers_of(net)
    assert found == list(dynamic_layers(net).values())
    assert graphs.layers_of(net) is found
    twin = copy.deepcopy(net)
    assert copy.deepcopy(graphs).layers_of(twin) == list(dynamic_layers(twin).values()) != found


@pytest.mark.parametrize('installed', [None, SimpleNamespace(__version__='3.4.0')])
def test_what_compiled_code_needs(installed, monkeypatch):
    monkeypatch.setitem(sys.modules, 'triton', installed)
    gpu.is_available.cache_clear()
    try:
        assert not can_execute('cuda')
        with pytest.raises(RuntimeError, match='compiled=True needs Triton 3.6 or newer'):
            execution_on(torch.device('cuda'))
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
        with pytest.raises(RuntimeError, match='compiled=True needs Triton 3.6 or newer'):
            dynamic('ResNet', {'compiled': True})
    finally:
        gpu.is_available.cache_clear()


def test_policies_can_be_entered_again():
    net = network('ResNet2Plus1d')
    layers = list(dynamic_layers(net).values())
    forced = force_policies(net, torch.tensor([1, 2]).expand(1, len(layers), 2))
    for _ in range(2):
        with forced:
            first = [layer.forced for layer in layers]
            with forced:
                assert [layer.forced for layer in layers] == first
            assert [layer.forced for layer in layers] == first
        assert all(layer.forced is None for layer in layers)
    options = first[0].on(torch.device('cpu'), 3)
    assert options.dtype == torch.int32
    assert options.tolist() == [[1, 2]]
    assert first[0].on(torch.device('cpu'), 5) is options
