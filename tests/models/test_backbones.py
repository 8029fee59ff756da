# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Parity with the stock networks."""

import copy
import pickle

import pytest
import torch
from mmaction.registry import MODELS
from mmcv.cnn import fuse_conv_bn
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vared2_mmaction import dynamize, force_policy, static_cost
from vared2_mmaction.checkpoints.loading import is_own_parameter
from vared2_mmaction.models import accelerate, dynamic_layers, force_policies, to_static

from ..compiling import needs_compiler
from .backbones import NAMED, SHORT, STOCK, dynamic, listed, stock
from .comparing import clips, randomise, relative


@pytest.mark.parametrize('name', STOCK)
def test_full_policy_is_the_stock_network(name):
    twin, net = (make(name, **SHORT[name]).double() for make in (stock, dynamic))
    x = clips(name, torch.float64)
    keys = net.load_state_dict(twin.state_dict(), strict=False)
    assert keys.unexpected_keys == []
    assert keys.missing_keys
    assert all(is_own_parameter(key) for key in keys.missing_keys)
    for training in (True, False):
        net.train(training)
        twin.train(training)
        with force_policy(net, 0, 0), torch.random.fork_rng():
            features, decisions = net(x)
        with torch.random.fork_rng():
            expected = twin(x)
        assert relative(features, expected) <= 1e-9
        assert torch.equal(decisions[..., 0], decisions[..., 1])
    static = to_static(net)
    assert type(static) is type(twin)
    static.eval()
    assert relative(static(x), twin(x)) <= 1e-9  # statistics of BatchNorm were taken in two ways
    assert set(static.state_dict()) == set(twin.state_dict())


@pytest.mark.parametrize('name', STOCK)
def test_full_policy_is_the_accelerated_stock_network_to_the_last_bit(name):
    twin, net = (accelerate(make(name, **SHORT[name])) for make in (stock, dynamic))
    x = clips(name)
    net.load_state_dict(twin.state_dict(), strict=False)
    for training in (True, False):
        net.train(training)
        twin.train(training)
        with force_policy(net, 0, 0), torch.random.fork_rng():
            features, _ = net(x)
        with torch.random.fork_rng():
            assert relative(features, twin(x)) == 0


def test_policies_of_a_dump_can_be_replayed():
    net, x = dynamic('ResNet2Plus1d'), clips('ResNet2Plus1d')
    randomise(net)
    net.eval()
    with torch.no_grad():
        policy = net(x)[1][:, 1:, 3:5].long()
        assert policy[0].ne(policy[1]).any()
        with force_policies(net, policy):
            assert torch.equal(net(x)[1][:, 1:, 3:5].long(), policy)
        with force_policies(net, policy[:1]):
            assert torch.equal(net(x)[1][1, 1:, 3:5].long(), policy[0])
        with force_policies(net, policy.repeat(2, 1, 1)), pytest.raises(ValueError, match='of 4'):
            net(x)
    for wrong in (policy[0], policy[:, 1:], policy - 3):
        with pytest.raises(ValueError, match='policy: expected'), force_policies(net, wrong):
            pass


def of_convolutions(counter):
    """Multiply-adds of the convolutions of each module, without those whose kernels TANet makes
    from its maps, which are no parameters."""
    counted = {
        module: operations.get(torch.ops.aten.convolution, 0) // 2
        for module, operations in counter.get_flop_counts().items()
    }
    own = [m for m in counted if m.endswith('.tam')]
    counted['Global'] -= sum(counted[m] - counted[f'{m}.L'] for m in own)
    return counted


def counted(net, x):
    """What the network answers, and the counter of what was executed."""
    net.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        found = net(x)
    return found, counter


@pytest.mark.parametrize('name', STOCK)
def test_compute_equals_what_is_executed(name):
    """Convolutions for convolutions, to the last multiply-add: all of them by the dearest options
    in use, and what was decided is charged."""
    net, shape = dynamic(name, **SHORT[name]), STOCK[name][1]
    randomise(net)
    clip = torch.randn(shape[0] // 2, *shape[1:])
    (_, decisions), counter = counted(net, clip)
    static = of_convolutions(counter)['Global']
    executed, charged_static, overhead, *_ = decisions[0].sum(0).tolist()
    assert charged_static == static > executed > 0
    assert overhead >= sum(layer.gate.macs() for layer in dynamic_layers(net).values())
    for layer in dynamic_layers(net).values():
        layer.channel_options.use([1 % len(layer.channel_options.kept)])
        layer.temporal_options.use([1])
    (_, decisions), counter = counted(net, clip)
    executed, charged_static, *_ = decisions[0].sum(0).tolist()
    assert executed == of_convolutions(counter)['Global'] < static == charged_static
    twin = stock(name, **SHORT[name])
    _, counter = counted(twin, clip)
    assert of_convolutions(counter)['Global'] == static
    counts = counter.get_flop_counts()['Global']
    assert static_cost(net, clip.shape) == sum(counts.values()) // 2
    assert static_cost(twin, clip.shape) == sum(counts.values()) // 2


@pytest.mark.parametrize('groups', [1, 2])
def test_transposed_convolutions_are_charged(groups):
    upward = nn.ConvTranspose3d(6, 4, 3, stride=2, groups=groups)
    net = dynamize(nn.Sequential(nn.Conv3d(3, 6, 1), upward), layers='0')
    (_, decisions), counter = counted(net, torch.randn(1, 3, 4, 5, 6))
    counts = of_convolutions(counter)
    assert decisions[0, 0, 0] == sum(n for m, n in counts.items() if m.endswith('.1'))


@pytest.mark.parametrize('name', STOCK)
def test_gradient_of_the_cost_reaches_every_gate(name):
    net, x = dynamic(name, **SHORT[name]), torch.randn(STOCK[name][1])
    net.train()
    features, decisions = net(x)
    decisions[..., 0].sum().backward(retain_graph=True)
    layers = dynamic_layers(net)
    assert len(layers) == decisions.shape[1] - 1
    for layer in layers.values():
        assert layer.gate.fc2.weight.grad.abs().sum() > 0
    sum(f.sum() for f in listed(features)).backward()
    unused = [key for key, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []


@needs_compiler
@pytest.mark.parametrize('name', NAMED)
def test_compiled_mixing_trains_alike(name):
    """Compared with the definition in float64, whose rounding is nobody's error."""
    torch.manual_seed(1)  # gradients near which no ReLU or pool changes sides by rounding
    nets, x = [dynamic(name, {'compiled': compiled}) for compiled in (False, True)], clips(name)
    nets[1].load_state_dict(nets[0].state_dict())
    nets[0].double()
    found = []
    for net, own in zip(nets, (x.double(), x), strict=True):
        net.train()
        with torch.random.fork_rng():
            features, decisions = net(own)
            loss = sum(f.square().mean() for f in listed(features))
        (loss + decisions[..., 0].sum() / 1e9).backward()
        found.append([p.grad for p in net.parameters() if p.grad is not None])
    largest = max(a.norm() for a in found[0])
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= 5e-3 * (a.norm() + 1e-3 * largest)  # small ones are noisy


@pytest.mark.parametrize('name', ['ResNet3d', 'ResNet3dSlowOnly', 'ResNet2Plus1d'])
def test_gradient_checkpointing_keeps_the_gradient_of_decisions(name):
    net, x = dynamic(name), torch.randn(STOCK[name][1])
    saving = dynamic(name, with_cp=True)
    saving.load_state_dict(net.state_dict())
    gradients = []
    for model in (net, saving):
        model.train()
        features, decisions = model(x)
        (features.mean() + decisions[..., 0].sum() / 1e6).backward()
        gradients.append({k: p.grad for k, p in model.named_parameters()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-3, atol=1e-5)
    gates = [g for key, g in gradients[1].items() if key.endswith('gate.fc2.bias')]
    assert all(g.abs().sum() > 0 for g in gates)


@pytest.mark.parametrize('name', ['ResNet', 'ResNet2Plus1d', 'ResNet3dSlowOnly'])
def test_copies_and_pickles_are_equal_and_apart(name):
    net, x = dynamic(name), torch.randn(STOCK[name][1])
    net.eval()
    with torch.no_grad():
        expected, decisions = net(x)
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            features, again = other(x)
            assert relative(features, expected) == 0
            assert torch.equal(again, decisions)
            with force_policy(other, 1, 1):
                assert torch.equal(net(x)[1], decisions)


def test_initialisation_leaves_gates_and_cheap_operations_alone():
    for name in ('C3D', 'ResNet', 'ResNet3d'):  # C3D initialises every nn.Linear
        net = dynamic(name)
        before = {k: v.clone() for k, v in net.state_dict().items() if is_own_parameter(k)}
        net.init_weights()
        after = net.state_dict()
        assert all(torch.equal(v, after[k]) for k, v in before.items())
    layer = next(iter(dynamic_layers(net).values()))
    for options in (layer.channel_options, layer.temporal_options):  # a copy at first
        assert options.cheap[0].weight.eq(1).all()
        assert options.cheap[0].bias.eq(0).all()


def test_a_stock_backbone_may_have_gates_of_its_own():
    class Gated(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Conv3d(3, 4, 1)
            self.gate = torch.nn.Conv3d(4, 4, 3, padding=1)

        def forward(self, x):
            x = self.stem(x)
            return x * self.gate(x).sigmoid()

    twin, net, x = Gated(), dynamize(Gated()), torch.randn(2, 3, 4, 6, 6)
    assert list(dynamic_layers(net)) == ['gate']
    keys = net.load_state_dict(twin.state_dict(), strict=False)
    assert all(key.startswith(('gate.gate.', 'gate.channel', 'gate.temp')) for key in keys[0])
    assert keys.unexpected_keys == []
    with force_policy(net, 0, 0):
        torch.testing.assert_close(net(x)[0], twin(x))


def test_a_static_checkpoint_starts_nearly_unchanged_where_dear_options_are_dominant():
    gate = {'initial': (0.9, 0.067, 0.033)}
    for name in NAMED:
        twin, net, x = stock(name), dynamic(name, {'gate': gate}), torch.randn(STOCK[name][1])
        net.load_state_dict(twin.state_dict(), strict=False)
        twin.eval()
        net.eval()
        with torch.no_grad():
            found, expected = net(x)[0], twin(x)
        assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), 0) > 0.9


@pytest.mark.parametrize('bias', [-5, 5])
def test_every_parameter_has_a_gradient_whatever_is_off(bias):
    """Distributed training waits for all of them."""
    net, x = dynamic('ResNet2Plus1d'), torch.randn(STOCK['ResNet2Plus1d'][1])
    for layer in dynamic_layers(net).values():
        with torch.no_grad():
            layer.gate.fc2.bias.fill_(-5)
            layer.gate.fc2.bias[::3] = bias  # the dear option of both dimensions
    net.train()
    features, decisions = net(x)
    assert decisions[:, 1:, 3].unique().tolist() == [0 if bias > 0 else 2]
    (features.sum() + decisions[..., 0].sum()).backward()
    assert [key for key, p in net.named_parameters() if p.grad is None] == []


def test_which_layers_are_dynamic():
    layers = dynamic_layers(dynamic('ResNet2Plus1d'))
    assert len(layers) == 2 * 10  # each convolution of a block has a spatial and a temporal one
    assert not any(s in name for name in layers for s in ('downsample', 'lateral', 'se_module'))
    assert all(name.startswith('layer') for name in layers)
    assert len(dynamic_layers(dynamic('C3D'))) == 7  # no residual stages: all but the first
    only = dynamic('ResNet3d', {'layers': r'layer1\..*conv2'})
    assert list(dynamic_layers(only)) == [f'layer1.{i}.conv2.conv' for i in range(2)]
    with pytest.raises(ValueError, match=r"dynamic\.layers: no convolution .* 'layer9'.*conv1"):
        dynamic('ResNet3d', {'layers': 'layer9'})


@pytest.mark.parametrize(('key', 'column'), [('channel', 3), ('temporal', 4)])
def test_one_dimension_alone(key, column):
    net, x = dynamic('ResNet3d', {key: 1}), torch.randn(STOCK['ResNet3d'][1])
    net.eval()
    with torch.no_grad(), force_policy(net, 2, 2):
        _, decisions = net(x)
    assert (decisions[..., column] == 0).all()
    assert (decisions[:, 1:, 7 - column] > 0).any()
    assert decisions[..., 0].sum() < decisions[..., 1].sum()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'chanel': 2}, "unknown option 'chanel'.*channel"),
        ({'channel': 5}, r'dynamic\.channel=5'),
        ({'temporal': 0}, r'dynamic\.temporal=0'),
        ({'channel': 1, 'temporal': 1}, 'nothing is dynamic'),
        ({'channel_multiple': 0}, r'dynamic\.channel_multiple=0.*from 1 on'),
        ({'channel_multiple': 1.5}, r'dynamic\.channel_multiple=1\.5.*from 1 on'),
        ({'gate': {'hidden': 3}}, r"dynamic\.gate.*unknown option 'hidden'.*hidden_channels"),
        ({'gate': {'initial': (2, 1, 1)}}, r'dynamic\.gate\.initial\[0\]=2: expected a number'),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        dynamic('ResNet3d', options)


def test_2d_backbones_need_the_number_of_segments():
    with pytest.raises(ValueError, match=r'num_segments is missing: .*ResNet'):
        dynamize(stock('ResNet'))
    with pytest.raises(ValueError, match='is dynamic already'):
        dynamize(dynamic('ResNet3d'))
    net = dynamic('ResNet')
    with pytest.raises(ValueError, match=r'num_segments=4, got \(6, 3, 32, 32\)'):
        net(torch.randn(6, 3, 32, 32))
    # C2D takes clips, whose frames it puts side by side itself.
    small = {'num_stages': 1, 'strides': (1,), 'dilations': (1,), 'out_indices': (0,)}
    net = dynamize(MODELS.build({'type': 'mmaction.C2D', 'depth': 50, **small}), num_segments=4)
    with pytest.raises(ValueError, match=r'C2D.*: expected frames \(N \* 4, .*\(2, 3, 4, 32, 32\)'):
        net(torch.randn(2, 3, 4, 32, 32))


def test_pooled_segments_of_tsm():
    net = dynamic('ResNetTSM', num_segments=4, temporal_pool=True)
    twin = to_static(net)
    x = torch.randn(8, 3, 32, 32)
    net.eval()
    twin.eval()
    with torch.no_grad(), force_policy(net, 0, 0):
        features, decisions = net(x)
        torch.testing.assert_close(features, twin(x))
    assert decisions.shape[0] == 8
    layers = dynamic_layers(net)
    assert layers['layer1.0.conv2.conv'].num_segments == 4
    assert layers['layer2.net.0.conv2.conv'].num_segments == 2


def test_forced_policies():
    net, x = dynamic('ResNet2Plus1d'), torch.randn(STOCK['ResNet2Plus1d'][1])
    net.eval()
    ratios = []
    for p in range(4):
        with torch.no_grad(), force_policy(net, p, p):
            cost = net(x)[1].sum(1)
        ratios.append((cost[0, 0] / cost[0, 1]).item())
    assert ratios[0] == 1
    assert ratios[1] > ratios[2] == ratios[3]  # clamped to what the layer has
    assert not any(layer.gate._forward_hooks for layer in dynamic_layers(net).values())
    with pytest.raises(ValueError, match='channel=-1'), force_policy(net, -1):
        pass
    with pytest.raises(ValueError, match='no dynamic layer'), force_policy(stock('ResNet3d')):
        pass


@pytest.mark.parametrize(
    ('name', 'shape', 'same'),
    [('ResNet3d', (3, 16, 32, 32), (1, 3, 16, 32, 32)), ('ResNet', (3, 32, 32), (4, 3, 32, 32))],
)
def test_static_cost_of_one_clip(name, shape, same):
    net = dynamic(name)
    assert static_cost(net, shape) == static_cost(net, same) > 0
    with pytest.raises(ValueError, match=r'input_shape=\(1, 2\): expected'):
        static_cost(net, (1, 2))


def test_own_parts_are_on_the_device_of_the_backbone():
    net = dynamize(stock('ResNet3d').to('meta'))
    tensors = [*net.parameters(), *net.buffers()]
    assert {tensor.device.type for tensor in tensors} == {'meta'}


@pytest.mark.parametrize('training', [True, False])
def test_a_forward_pass_that_fails_leaves_nothing_behind(training):
    net, x = dynamic('ResNet3d'), clips('ResNet3d')
    net.train(training)

    def fail(*args):
        raise KeyboardInterrupt

    handle = net.layer2.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        net(x)
    handle.remove()
    assert all(layer.decisions is None for layer in dynamic_layers(net).values())
    copy.deepcopy(net)  # refuses tensors that have a history


def test_mmcvs_fusion_refuses_dynamic_layers():
    net = dynamic('ResNet')
    with pytest.raises(ValueError, match=r'^layer1\.0\.conv1\.conv: fuse_conv_bn does not know it'):
        fuse_conv_bn(net)
    fuse_conv_bn(stock('ResNet'))
