# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""One network at any budget, with no clip that gets more from a smaller one."""

import copy

import numpy as np
import pytest
import torch
from mmaction.registry import MODELS
from mmaction.utils import register_all_modules
from mmengine.model import ExponentialMovingAverage
from torch import nn
from torch.optim.swa_utils import AveragedModel

from vared2_mmaction import set_budget
from vared2_mmaction.budget import Calibration, shift_gates, start_from_static
from vared2_mmaction.budget.observe import observe
from vared2_mmaction.budget.passes import estimate_batch_norm
from vared2_mmaction.models import dynamic_layers
from vared2_mmaction.ops import SoftModulationGate

TWO_STAGES = {
    'depth': 18,
    'num_stages': 2,
    'stage_blocks': (1, 1),
    'spatial_strides': (1, 2),
    'temporal_strides': (1, 2),
    'dilations': (1, 1),
    'out_indices': (1,),
    'base_channels': 4,
    'pretrained': None,
    'norm_eval': False,
}


def network(kind='VARED2ResNet2Plus1d', std=1.0, **dynamic):
    """A tiny backbone whose gates choose at random, clip by clip, those of the stem too."""
    dynamic = {'layers': 'conv', **dynamic}
    register_all_modules()
    torch.manual_seed(0)
    if kind == 'VARED2ResNet':
        stages = {'num_stages': 1, 'strides': (1,), 'dilations': (1,), 'out_indices': (0,)}
        config = {'depth': 18, 'num_segments': 8, **stages}
        model = MODELS.build({'type': kind, **config, 'dynamic': dynamic})
    else:
        config = {'pretrained2d': False, 'conv_cfg': {'type': 'Conv2plus1d'}}
        model = MODELS.build({'type': kind, **TWO_STAGES, **config, 'dynamic': dynamic})
    for layer in dynamic_layers(model).values():
        torch.nn.init.normal_(layer.gate.fc2.weight, std=std)
        torch.nn.init.normal_(layer.gate.fc2.bias, std=0.5 * std)
    return model


def clips(batches, seed, flat=False):
    """Clips of noise that differ in contrast, in brightness and in how much of them moves."""
    random = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(batches):
        still = torch.randn(4, 3, 1, 12, 12, generator=random)
        moving = torch.randn(4, 3, 8, 12, 12, generator=random)
        much, light = torch.rand(2, 4, 1, 1, 1, 1, generator=random) * 4
        x = still + much * moving + light
        found.append(x.transpose(1, 2).flatten(0, 1) if flat else x)
    return found


def ratios(model, batches):
    """Compute ratio of every clip."""
    model.eval()
    with torch.no_grad():
        decisions = torch.cat([model(x).decisions for x in batches])
    decisions = decisions[:: model.clip_length or 1]
    return decisions[..., 0].sum(1) / decisions[..., 1].sum(1)


@pytest.mark.parametrize('kind', ['VARED2ResNet2Plus1d', 'VARED2ResNet'])
def test_budgets_are_met_and_no_clip_seen_or_not_gets_more_from_a_smaller_one(kind):
    flat = kind == 'VARED2ResNet'
    model, seen, unseen = network(kind), clips(3, 1, flat), clips(6, 2, flat)
    calibration = Calibration(model, seen)
    asked = np.linspace(calibration.dearest, calibration.cheapest, 6)
    before, spreads = torch.ones(24, dtype=torch.float64), []
    for ratio in asked:
        reached = calibration.set(float(ratio))
        assert reached == pytest.approx(ratios(model, seen).mean().item())
        assert reached == pytest.approx(ratio, abs=0.02)  # one of twelve clips, at one layer
        now = ratios(model, unseen)
        assert (now <= before).all()
        spreads.append((now.max() - now.min()).item())
        before = now
    assert max(spreads) > 0.02  # gates still choose


def test_what_is_set_is_a_checkpoint_of_the_same_config():
    model, seen = network(), clips(2, 1)
    set_budget(model, 0.8, seen)
    again = network(std=0.1)
    again.load_state_dict(model.state_dict())
    x = clips(1, 3)[0]
    model.eval(), again.eval()
    with torch.no_grad():
        (features, decisions), others = model(x), again(x)
    assert torch.equal(features, others.features)
    assert torch.equal(decisions, others.decisions)


def test_calls_from_the_same_weights_are_nested_and_repeatable():
    seen, unseen = clips(2, 1), clips(3, 2)
    found = []
    for ratio in (0.9, 0.75, 0.75):
        model = network()
        model.train()
        set_budget(model, ratio, seen)
        assert all(module.training for module in model.modules())
        found.append(ratios(model, unseen))
    assert (found[1] <= found[0]).all()
    assert torch.equal(found[1], found[2])


def test_a_clip_may_not_exceed_the_largest_ratio():
    model, seen, unseen = network(), clips(2, 1), clips(6, 2)
    free = ratios(model, unseen)
    limit = (free.max().item() + free.min().item()) / 2
    calibration = Calibration(model, seen, max_ratio=limit)
    assert calibration.dearest <= limit
    calibration.set(calibration.dearest)
    assert ratios(model, unseen).max() <= limit


def test_what_is_out_of_reach_names_the_ends():
    seen = clips(2, 1)
    calibration = Calibration(network(), seen)
    ends = f'from {calibration.cheapest:.3f}, the cheapest, to {calibration.dearest:.3f}'
    for ratio in (calibration.cheapest - 0.05, 0.01):
        with pytest.raises(ValueError, match=f'ratio={ratio}: out of reach.*{ends}'):
            calibration.set(ratio)
    fixed = network()
    for layer in dynamic_layers(fixed).values():
        layer.channel_options.use([1])
        layer.temporal_options.use([1])
    with pytest.raises(ValueError, match=r'the dearest; options are fixed, no gate chooses$'):
        set_budget(fixed, 0.9, seen)
    with pytest.raises(ValueError, match=r'ratio=1.5: expected a share'):
        calibration.set(1.5)
    with pytest.raises(ValueError, match='max_ratio=0.01: out of reach: expected at least 0'):
        Calibration(network(), seen, max_ratio=0.01)
    with pytest.raises(ValueError, match='expected batches of clips'):
        set_budget(network(), 0.5, [])
    with pytest.raises(ValueError, match='has 0 dynamic backbones'):
        set_budget(torch.nn.Conv2d(1, 1, 1), 0.5, seen)
    with pytest.raises(ValueError, match='expected clips of one length'):
        set_budget(network(), 0.5, [*seen, seen[0][:, :, :5]])

    class OtherGate(SoftModulationGate):
        pass

    other = network(gate={'type': OtherGate})
    with pytest.raises(ValueError, match='expected a SoftModulationGate to calibrate, got Other'):
        set_budget(other, 0.5, seen)


def test_batch_norm_is_that_of_the_clips_and_gates_keep_theirs():
    model, seen = network(), clips(2, 1)
    gates = {k: v.clone() for k, v in model.state_dict().items() if '.gate.' in k}
    estimate_batch_norm(model, seen)
    inputs = []
    with model.conv1.conv.bn_s.register_forward_pre_hook(lambda _, x: inputs.append(x[0])):
        ratios(model, seen)
    mean = torch.cat(inputs).mean((0, 2, 3, 4))
    assert torch.allclose(model.conv1.conv.bn_s.running_mean, mean, atol=1e-5)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in gates.items())


def test_gates_are_shifted_to_a_budget():
    model, seen = network(), clips(4, 1)
    before = ratios(model, seen).mean().item()
    for wanted in (before - 0.06, before + 0.06):
        _, after = shift_gates(model, seen, wanted)
        assert after == pytest.approx(ratios(model, seen).mean().item())
        assert after == pytest.approx(wanted, abs=0.02)


def test_a_static_network_is_rebuilt_by_least_squares():
    seen = clips(2, 1)
    static = network()
    model = copy.deepcopy(static)
    start_from_static(model, seen)
    fitted = {k: v.errors for k, v in observe(model, seen, errors=True).layers.items()}
    copies = copy.deepcopy(model)
    cheap = {k: v for k, v in static.state_dict().items() if '.cheap.' in k}
    copies.load_state_dict({**model.state_dict(), **cheap})
    copied = {k: v.errors for k, v in observe(copies, seen, errors=True).layers.items()}
    for name, dimensions in fitted.items():
        for new, old in zip(dimensions, copied[name], strict=True):
            assert (new[1:] < old[1:]).all()
            assert (new[1:] <= 1 + 1e-6).all()  # the mean of a map is as good
    assert ratios(model, seen).min() == 1

    # With the dearest options alone, it is the static network.
    calibration = Calibration(model, seen)
    assert calibration.set(calibration.dearest) == 1
    for layer in dynamic_layers(static).values():
        layer.channel_options.use([0]), layer.temporal_options.use([0])
    estimate_batch_norm(static, seen)
    x = seen[0]
    static.eval(), model.eval()
    with torch.no_grad():
        expected, found = static(x).features, model(x).features
    assert (found - expected).norm() < 0.1 * expected.norm()


def test_least_squares_are_those_of_a_solver():
    model, seen = network(), clips(2, 1)
    name, layer = next(iter(dynamic_layers(model).items()))
    inputs = []
    with layer.register_forward_pre_hook(lambda _, x: inputs.append(x[0])):
        start_from_static(model, seen)
    with torch.no_grad():
        z = torch.cat([layer.convolve(x) for x in inputs])
    k = layer.channel_options.kept[1]
    scale, shift = layer.channel_options.tables((1,))[:, 0, 0, k]
    x = torch.stack((z[:, 0].flatten(), torch.ones(z[:, 0].numel())), 1)
    solved = torch.linalg.lstsq(x, z[:, k].flatten()[:, None]).solution
    assert torch.allclose(torch.stack((scale, shift)), solved[:, 0], atol=1e-4), name


def test_norms_of_a_head_that_is_not_run_whole_stay():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = network()
            self.roi_head = nn.Module()
            self.roi_head.bbox_head = nn.Conv3d(8, 2, 1)
            self.roi_head.bbox_head.in_channels = 8
            self.roi_head.shared_head = nn.BatchNorm3d(8)
            self.data_preprocessor = lambda batch, training: {'inputs': batch}

        def extract_feat(self, x):
            return self.backbone(x)

    model = Detector()
    nn.init.constant_(model.roi_head.shared_head.running_mean, 5.0)
    norm = next(m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm3d))
    of_backbone = norm.running_mean.clone()
    estimate_batch_norm(model, clips(2, seed=0))
    assert model.roi_head.shared_head.running_mean.eq(5).all()
    assert not torch.equal(norm.running_mean, of_backbone)


@pytest.mark.parametrize('wrapper', [ExponentialMovingAverage, AveragedModel])
@pytest.mark.parametrize(
    'set_all', [set_budget, lambda model, ratio, batches: shift_gates(model, batches, ratio)]
)
def test_networks_in_wrappers_are_calibrated_as_they_are(wrapper, set_all):
    config = {
        'type': 'Recognizer3D',
        'backbone': {
            **{'type': 'VARED2ResNet2Plus1d', **TWO_STAGES, 'pretrained2d': False},
            'conv_cfg': {'type': 'Conv2plus1d'},
        },
        'neck': {'type': 'SoftModulationGateNeck'},
        'cls_head': {'type': 'VARED2I3DHead', 'num_classes': 2, 'in_channels': 8},
        'data_preprocessor': {'type': 'ActionDataPreprocessor', 'format_shape': 'NCTHW'},
    }
    torch.manual_seed(0)
    model = MODELS.build(config)
    for layer in dynamic_layers(model).values():
        nn.init.normal_(layer.gate.fc2.weight)
    wrapped = wrapper(model)
    loader = [{'inputs': [x[None] for x in batch], 'data_samples': None} for batch in clips(2, 1)]
    for network in model, wrapped:
        set_all(network, 0.9, loader)
    expected, found = model.state_dict(), wrapped.module.state_dict()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
