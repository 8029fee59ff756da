# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Dynamic networks are compiled, exported, traced and counted by PyTorch's and MMEngine's tools."""

import copy

import pytest
import torch
from mmaction.registry import MODELS
from mmaction.utils import register_all_modules
from mmengine.analysis import get_model_complexity_info
from torch.utils._python_dispatch import TorchDispatchMode

from vared2_mmaction import dynamize, static_cost
from vared2_mmaction.models import SoftModulationGateNeck, dynamic_layers
from vared2_mmaction.ops import ComputationBudgetLoss, Options, cost

from ..engine.training import config, train
from .backbones import STOCK, dynamic, listed
from .comparing import randomise, relative

# One block with downsampling; ResNet3d has one without before it.
_TINY = {'base_channels': 4, 'stage_blocks': (1,), 'num_stages': 1, 'out_indices': (0,)}
_TINY |= {'spatial_strides': (2,), 'temporal_strides': (2,), 'dilations': (1,)}
_TWO = {**_TINY, 'stage_blocks': (1, 1), 'num_stages': 2, 'out_indices': (1,), 'inflate': (1, 0)}
_TWO |= {'spatial_strides': (1, 2), 'temporal_strides': (1, 2), 'dilations': (1, 1)}
_FLAT = {'num_stages': 1, 'strides': (1,), 'dilations': (1,), 'out_indices': (0,)}
_PATHWAYS = {
    key: {
        **STOCK['ResNet3dSlowFast'][0][key],
        **{k: v for k, v in _TINY.items() if k != 'base_channels'},
        **{'depth': 18, 'inflate': (1,)},
    }
    for key in ('slow_pathway', 'fast_pathway')
}
NETWORKS = {
    'ResNet': (_FLAT, (8, 3, 16, 16)),
    'ResNet3d': (_TWO, (2, 3, 8, 16, 16)),
    'ResNet2Plus1d': (_TINY, (2, 3, 8, 16, 16)),
    'X3D': ({'num_stages': 1, 'spatial_strides': (2,)}, (2, 3, 4, 16, 16)),
    'ResNet3dSlowFast': (_PATHWAYS, (2, 3, 16, 32, 32)),
    'ResNet3dCSN': (_TINY, (2, 3, 4, 16, 16)),
    'ResNetTSM': ({}, (8, 3, 16, 16)),
}
"""Arguments that make networks small, and shapes of inputs."""


def network(name, **options):
    kwargs, shape = NETWORKS[name]
    layers = r'layer2\.0\.conv2' if name == 'ResNet3d' else r'layer1\.0\.conv2'
    net = dynamic(name, {'layers': layers, **options}, **kwargs)
    if name == 'ResNetTSM':  # it is built with four stages
        net.res_layers, net.layer2, net.layer3, net.layer4 = ['layer1'], None, None, None
        net.out_indices = (0,)
    randomise(net)
    assert len(dynamic_layers(net)) in (1, 2)
    return net, torch.randn(shape)


def gradients(net, found):
    features, decisions = found
    (sum(f.square().mean() for f in listed(features)) + 1e-6 * decisions[..., 0].sum()).backward()
    return {key: p.grad for key, p in net.named_parameters() if p.requires_grad}


@pytest.mark.parametrize('name', NETWORKS)
def test_compiled_whole_networks_train_alike(name):
    torch._dynamo.reset()
    # A third option is one more turn of the same loops: one network has it.
    net, x = network(name, **({} if name == 'ResNet3d' else {'channel': 2, 'temporal': 2}))
    twin = copy.deepcopy(net)
    net.train()
    twin.train()
    expected = twin(x)
    found = torch.compile(net, fullgraph=True, backend='aot_eager')(x)
    assert relative(found[0], expected[0]) <= 1e-4
    assert torch.equal(found[1], expected[1])
    wanted = gradients(twin, expected)
    largest = max(g.norm() for g in wanted.values())
    for key, gradient in gradients(net, found).items():
        assert gradient is not None, key
        assert (gradient - wanted[key]).norm() <= 1e-3 * wanted[key].norm() + 1e-5 * largest, key


class NoHost(TorchDispatchMode):
    """Refuses operations that hand values to the host, or whose shapes depend on values."""

    REFUSED = ('_local_scalar_dense', 'nonzero', 'masked_select', 'is_nonzero', '_unique2')

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.REFUSED, f'{func} asks the device'
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('name', NETWORKS)
def test_no_step_asks_the_device_what_was_decided(name):
    net, x = network(name)
    neck, loss = SoftModulationGateNeck(), ComputationBudgetLoss(budget=0.4, per_clip=False)
    for mode in (True, False):
        net.train(mode)
        with NoHost():
            found = net(x)
            ratio = neck(found)[0].ratio
            loss(ratio, ratio > 0).backward(retain_graph=True)
            gradients(net, found)


# Tracing warns of shapes that were checked.
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize('name', ['ResNet', 'ResNet2Plus1d'])
@torch.no_grad()
def test_exported_and_traced_networks_answer_alike(name):
    net, x = network(name)
    net.eval()
    for layer in dynamic_layers(net).values():
        layer.temporal_options.use((0, 2))
    expected = net(x)
    exported = torch.export.export(net, (x,)).module()
    traced = torch.jit.trace(net, x, check_trace=False)
    other = torch.randn_like(x)
    for made in (exported, traced):
        for given, (features, decisions) in ((x, expected), (other, net(other))):
            found = made(given)
            assert relative(found[0], features) <= 1e-5
            assert torch.equal(found[1], decisions)


def test_a_compiled_network_knows_what_is_in_use():
    torch._dynamo.reset()
    stem = torch.nn.Sequential(torch.nn.Conv3d(3, 4, 1), torch.nn.Conv3d(4, 6, 3, padding=1))
    net, x = dynamize(stem), torch.randn(2, 3, 8, 6, 6)
    randomise(net)
    net.eval()
    compiled = torch.compile(net, fullgraph=True, backend='eager')
    with torch.no_grad():
        compiled(x)
        for layer in dynamic_layers(net).values():
            layer.channel_options.use((2,))
        found, expected = compiled(x), net(x)
    assert torch.equal(found[1], expected[1])
    assert relative(found[0], expected[0]) <= 1e-5
    assert expected[1][:, 1:, 3].eq(2).all()


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_the_counter_of_get_flops_counts_the_static_network():
    """MMAction2's get_flops.py calls this; the definition executes the dearest options."""
    net, x = network('ResNet2Plus1d')
    model = MODELS.build(
        {
            'type': 'Recognizer3D',
            'backbone': {'type': 'VARED2ResNet2Plus1d', **STOCK['ResNet2Plus1d'][0], **_TINY},
            'neck': {'type': 'SoftModulationGateNeck'},
            'cls_head': {'type': 'VARED2I3DHead', 'num_classes': 2, 'in_channels': 4},
        }
    )
    model.backbone = net
    model.eval()
    model.forward = model.extract_feat  # as the tool does
    clip = (1, *x.shape[1:])
    info = get_model_complexity_info(model, clip, show_table=False, show_arch=False)
    static = static_cost(net, clip)
    assert static <= info['flops'] <= 1.2 * static  # with norms, gates and mixing


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_the_counter_counts_2d_backbones():
    """Stock Recognizer2D with a neck cannot be traced: it returns a number of its own."""
    net, x = network('ResNet')
    net.eval()
    info = get_model_complexity_info(net, inputs=(x[:4],), show_table=False, show_arch=False)
    static = static_cost(net, x[:4].shape)
    assert static <= info['flops'] <= 1.2 * static


def test_mmengine_compiles_what_a_config_asks_for(videos, tmp_path):
    torch._dynamo.reset()
    register_all_modules()
    cfg = config(videos, tmp_path, [], compile={'backend': 'eager'})
    cfg.train_cfg = {'type': 'IterBasedTrainLoop', 'max_iters': 2}
    # MMAction2's own code breaks the graph, and what calls it is traced anew each time.
    one = dict.fromkeys(('spatial_strides', 'temporal_strides', 'dilations', 'stage_blocks'), (1,))
    cfg.model.backbone.update(one, num_stages=1, out_indices=(0,))
    cfg.model.backbone.dynamic = {'layers': r'layer1\.0\.conv2.*conv_s'}
    cfg.model.cls_head.in_channels = 4
    cfg.optim_wrapper.optimizer.lr = 0.1
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    training = train(cfg)
    assert len(training.seen) == 2
    for policy, ratio in training.seen:
        assert policy.shape == (2, 1, 2)
        assert ((ratio > 0) & (ratio <= 1)).all()
    gate = next(iter(dynamic_layers(training.runner.model).values())).gate
    assert gate.bn.num_batches_tracked == 2


def test_costs_that_a_graph_may_read_are_kept():
    options = Options((0, 1, 2), (0, 1, 2))
    constants = cost.LayerConstants(27, (8, 4, 2), 10)

    def tables(area):
        layer = cost.LayerCost(constants, options, (8, 4, 2), area)
        return cost._tables((layer,), torch.device('cpu'))

    kept = [tensor.data_ptr() for tensor in tables(1)]
    for area in range(2, 200):
        tables(area)
    assert [tensor.data_ptr() for tensor in tables(1)] == kept


@torch.no_grad()
def test_a_network_that_is_exported_first_goes_on_and_is_exported_again():
    cost._KNOWN.clear()  # of what other tests computed
    net, x = network('ResNet2Plus1d')
    net.eval()
    first, second = (torch.export.export(net, (x,)).module() for _ in range(2))
    expected = net(x).decisions
    assert type(expected) is torch.Tensor
    for exported in (first, second):
        assert torch.equal(exported(x)[1], expected)
