# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Networks that somebody converted, wrapped, parametrised or hooked are what they were."""

import copy
import warnings

import pytest
import torch
import torch.distributed
from mmaction.registry import MODELS
from mmcv.cnn import ConvWS2d
from mmengine.model import (
    ExponentialMovingAverage,
    MMDistributedDataParallel,
    revert_sync_batchnorm,
)
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel

from vared2_mmaction import dynamize, optimize, static_cost
from vared2_mmaction.deploy.blocks import ExecutedBlock
from vared2_mmaction.models import accelerate, dynamic_layers, to_static
from vared2_mmaction.ops.gate import SoftModulationGate

from ..compiling import EXECUTORS, needs_compiler
from ..models.backbones import STOCK, dynamic, stock
from ..models.comparing import randomise, randomise_norms, relative

NAME = 'ResNet2Plus1d'
SMALL = {
    **{'num_stages': 2, 'stage_blocks': (1, 1), 'out_indices': (1,), 'dilations': (1, 1)},
    **{'spatial_strides': (1, 2), 'temporal_strides': (1, 2)},
}


def network(**sizes):
    """One whose gates decide something, in evaluation mode, and an input."""
    net = dynamic(NAME, **(sizes or SMALL))
    randomise(net)
    randomise_norms(net)
    net.eval()
    return net, torch.randn(STOCK[NAME][1])


def synchronised(net):
    return nn.SyncBatchNorm.convert_sync_batchnorm(net)


def reverted(net):
    return revert_sync_batchnorm(synchronised(net))


def parametrised(net):
    for layer in dynamic_layers(net).values():
        weight_norm(layer)
        weight_norm(layer.gate.fc1)
        spectral_norm(layer.gate.fc2)
        weight_norm(layer.channel_options.cheap[0])
    return net


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group('gloo', f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ('convert', 'executor'),
    [
        (parametrised, 'eager'),
        (reverted, 'eager'),
        (AveragedModel, 'eager'),
        pytest.param(parametrised, 'cpu', marks=needs_compiler),
        pytest.param(synchronised, 'cpu', marks=needs_compiler),
        pytest.param(ExponentialMovingAverage, 'cpu', marks=needs_compiler),
    ],
)
def test_optimised_networks_equal_the_converted(convert, executor):
    net, x = network()
    with torch.no_grad():
        before, decided = net(x)
    converted = convert(net)
    converted.eval()
    with torch.no_grad():
        expected, decisions = converted(x)
        if convert is not parametrised:  # a spectral norm changes weights
            assert relative(expected, before) <= 1e-6
            assert torch.equal(decisions, decided)
        features, found = optimize(converted, executor=executor)(x)
        assert relative(features, expected) <= 1e-4
        assert torch.equal(found[..., :5], decisions[..., :5])
        again, _ = converted(x)  # the copy has taken nothing away
        assert torch.equal(again, expected)
    static = to_static(converted)
    assert type(static) is type(stock('ResNet2Plus1d'))
    assert static_cost(converted, (3, 8, 40, 40)) == static_cost(net, (3, 8, 40, 40))


@pytest.mark.parametrize('executor', EXECUTORS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_before_and_after_optimising(dtype, executor):
    net, x = network(stage_blocks=(1, 1, 1, 1))
    tolerance = {torch.float64: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]
    fast = optimize(net, executor=executor)
    with torch.no_grad():
        expected, _ = net(x)
        assert relative(fast(x)[0], expected) <= 1e-4  # kernels are packed
        for other in (fast.to(dtype), optimize(copy.deepcopy(net).to(dtype), executor=executor)):
            features, _ = other(x.to(dtype))
            assert features.dtype == dtype
            assert relative(features.float(), expected) <= tolerance
        assert relative(fast.float()(x)[0], expected) <= tolerance


@pytest.mark.parametrize('executor', EXECUTORS)
def test_wrappers_of_distributed_training(process_group, executor):
    net, x = network()
    wrapped = MMDistributedDataParallel(accelerate(net))
    wrapped.eval()
    with torch.no_grad():
        expected, decisions = wrapped(x)
        features, found = optimize(accelerate(wrapped), executor=executor)(x)
    assert relative(features, expected) <= 1e-4
    assert torch.equal(found[..., :5], decisions[..., :5])
    with pytest.raises(ValueError, match='got MMDistributedDataParallel.*wrap the dynamic'):
        dynamize(MMDistributedDataParallel(stock('ResNet2Plus1d')))


def test_one_clip_of_a_process_with_synchronised_gates():
    net, x = network()
    synchronised(net).train()
    assert net(x[:1]).features.isfinite().all()  # as with BatchNorm: of one clip there are none


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize('kind', [Doubled, ConvWS2d])
def test_a_convolution_with_a_forward_of_its_own_is_not_folded(kind):
    net = nn.Sequential(kind(3, 4, 3), nn.BatchNorm2d(4))
    randomise_norms(net)
    net.eval()
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        assert relative(optimize(net)(x), net(x)) <= 1e-5


def test_what_cannot_be_made_dynamic_is_named():
    def refused(change, message, **options):
        net = stock('ResNet', num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,))
        change(net)
        with pytest.raises(ValueError, match=message):
            dynamize(net, num_segments=4, **options)
        dynamize(net, num_segments=4, layers=r'layer2')

    def replace(net):
        net.layer1[0].conv1.conv = Doubled(64, 64, 3, padding=1)

    name = r'layers: layer1\.0\.conv1\.conv cannot be made dynamic'
    refused(replace, f'{name}: Doubled has a forward of its own')
    refused(lambda net: weight_norm(net.layer1[0].conv1.conv), f'{name}: .* is parametrised')
    refused(
        lambda net: net.layer1[0].conv1.conv.register_forward_hook(print), f'{name}: .* has hooks'
    )


def test_a_derived_convolution_without_a_forward_of_its_own_becomes_dynamic():
    class Renamed(nn.Conv2d):
        pass

    net = stock('ResNet', num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,))
    net.layer1[0].conv1.conv = Renamed(64, 64, 3, padding=1, bias=False)
    assert 'layer1.0.conv1.conv' in dynamize(net, num_segments=4).dynamic_layers


def noting(seen):
    return lambda module, *_: seen.append(module)


@pytest.mark.parametrize('executor', EXECUTORS)
@pytest.mark.parametrize('part', ['gate', 'gate.fc1', 'gate.bn'])
@pytest.mark.parametrize('when', ['before', 'after'])
def test_hooks_of_gates_are_called(part, executor, when):
    net, x = network()
    name = 'layer2.0.conv1.conv.conv_s'
    seen = []
    with torch.no_grad():
        expected, decisions = net(x)
        if when == 'before':
            net.get_submodule(f'{name}.{part}').register_forward_hook(noting(seen))
        fast = optimize(net, executor=executor)
        fast(x)
        if when == 'after':
            fast.get_submodule(f'{name}.{part}').register_forward_hook(noting(seen))
        seen.clear()
        features, found = fast(x)
    assert len(seen) == 1
    assert relative(features, expected) <= 1e-4
    assert torch.equal(found[..., :5], decisions[..., :5])


def test_hooks_of_gates_are_called_by_the_definition():
    net, x = network()
    seen, gate = [], dynamic_layers(net)['layer2.0.conv1.conv.conv_s'].gate
    parts = [gate, gate.fc1, gate.bn]
    for part in parts:
        part.register_forward_hook(noting(seen))
    net(x)
    assert len(seen) == 3
    assert set(seen) == set(parts)


@pytest.mark.parametrize('training', [False, True])
def test_a_hook_of_a_gate_can_change_its_answer(training):
    net, x = network()
    net.train(training)
    layer = dynamic_layers(net)['layer2.0.conv1.conv.conv_s']

    def close_dear_options(gate, args, answer):
        return answer._replace(channel=answer.channel * 0 + answer.channel.new_tensor([0, 0, 1.0]))

    layer.gate.register_forward_hook(close_dear_options)
    row = 1 + net.dynamic_layers.index('layer2.0.conv1.conv.conv_s')
    assert (net(x).decisions[:, row, 3] == 2).all()


@pytest.mark.parametrize('executor', EXECUTORS)
@pytest.mark.parametrize(
    'part',
    [
        'layer2.0.conv1',
        'layer2.0.conv1.conv',
        'layer2.0.conv1.conv.bn_s',
        'layer2.0.relu',
        'layer2.0.conv2.bn',
        'layer2.0.conv1.conv.conv_t',
        'layer2.0.downsample.bn',
        'conv1.bn',
    ],
)
def test_hooks_of_parts_of_blocks_see_what_they_saw(part, executor):
    net, x = network()
    seen = []
    with torch.no_grad():
        net.get_submodule(part).register_forward_hook(lambda m, args, y: seen.append(y.clone()))
        expected, _ = net(x)
        fast = optimize(net, executor=executor)
        fast(x)
        features, _ = fast(x)
    first, *others = seen
    assert len(others) == 2
    assert all(relative(other, first) <= 1e-4 for other in others)
    assert relative(features, expected) <= 1e-4


@pytest.mark.parametrize('executor', EXECUTORS)
def test_hooks_that_an_executed_block_would_not_call_are_refused(executor):
    net, x = network()
    fast = optimize(net, executor=executor)
    block = fast.layer2[0]
    assert isinstance(block, ExecutedBlock)
    for part in ('relu', 'conv1', 'conv1.conv', 'conv2.bn'):
        handle = block.get_submodule(part).register_forward_hook(print)
        with torch.no_grad(), pytest.raises(RuntimeError, match=rf'^layer2\.0\.{part}: its hooks'):
            fast(x)
        handle.remove()
    seen = []
    block.downsample.bn.register_forward_hook(noting(seen))
    with torch.no_grad():
        fast(x)
    assert len(seen) == 1


def test_gates_of_quantised_layers_decide_and_are_optimised():
    net, x = network()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # PyTorch moves this elsewhere
        quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
    with torch.no_grad():
        expected, found, fast = (one(x) for one in (net, quantised, optimize(quantised)))
    assert torch.equal(found.decisions[..., 3:5], expected.decisions[..., 3:5])
    assert 1e-5 < relative(found.features, expected.features) < 0.05
    assert relative(fast.features, found.features) < 1e-5


class Heads(nn.Module):
    """Attention's way: each head of a clip is an input of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(4, 8, 1)

    def forward(self, x):
        return self.conv(x.unflatten(1, (2, 4)).flatten(0, 1)).unflatten(0, (-1, 2)).flatten(1, 2)


def test_layers_with_several_inputs_a_clip_are_named():
    net = dynamize(nn.Sequential(nn.Conv3d(3, 8, 1), Heads()), layers='.')
    with pytest.raises(
        ValueError, match=r'1.conv: expected an input a clip, got 4 of 2 clips; dyn'
    ):
        net(torch.rand(2, 3, 4, 8, 8))
    net = dynamize(nn.Sequential(nn.Conv3d(3, 8, 1), Heads()), layers='^0')
    assert net(torch.rand(2, 3, 4, 8, 8)).features.shape == (2, 16, 4, 8, 8)


def test_gates_that_are_derived_from_ours_are_called():
    class Dear(SoftModulationGate):
        def forward(self, x, temporal_options):
            answer = super().forward(x, temporal_options)
            return answer._replace(channel=torch.eye(3)[:1].expand(len(x), 3))

    MODELS.register_module(module=Dear, name='DearGate', force=True)
    net = dynamic(NAME, {'gate': {'type': 'DearGate'}}, **SMALL)
    randomise(net)
    net.eval()
    x = torch.randn(STOCK[NAME][1])
    with torch.no_grad():
        for each in (net, optimize(net)):
            assert (each(x).decisions[:, 1:, 3] == 0).all()
