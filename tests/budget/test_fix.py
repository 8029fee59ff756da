# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The same options for every clip, at a budget."""

from pathlib import Path

import pytest
import torch
from mmaction.registry import MODELS
from mmaction.utils import register_all_modules
from mmengine.config import Config
from torch import multiprocessing

from commands.cli import leave_process_group
from vared2_mmaction.budget import common_options
from vared2_mmaction.budget.observe import observe
from vared2_mmaction.models import dynamic_layers

from .test_calibration import clips, network

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


def leave(model, options):
    for name, layer in dynamic_layers(model).items():
        channel, temporal = options[name]
        layer.channel_options.use([channel])
        layer.temporal_options.use([temporal])


@pytest.mark.parametrize('kind', ['VARED2ResNet2Plus1d', 'VARED2ResNet3d', 'VARED2ResNet'])
def test_what_is_said_is_what_every_clip_then_takes(kind):
    flat, ratios = kind == 'VARED2ResNet', []
    loader = clips(3, seed=1, flat=flat)
    for target in (0.8, 0.55, 0.35):
        model = network(kind).eval()
        options, ratio = common_options(model, loader, target)
        assert abs(ratio - target) < 0.13  # few layers, some of which hold much of the compute
        leave(model, options)
        observed = observe(model, clips(1, seed=2, flat=flat))
        assert observed.ratio(observed.zeros()) == pytest.approx(ratio, abs=1e-12)
        ratios.append(ratio)
    assert ratios == sorted(ratios, reverse=True)


def test_a_clip_alone_keeps_its_own_answers():
    model = network().eval()
    for clip in torch.cat(clips(1, seed=3)):
        observed = observe(model, [clip[None]])
        zeros = observed.zeros()
        own = {n: tuple(int(p[0]) for p in a.decided(zeros[n])) for n, a in observed.layers.items()}
        ratio = float(observed.ratio(zeros)[0])
        assert common_options(model, [clip[None]], ratio) == (own, pytest.approx(ratio))


def test_it_is_the_typical_clip_that_counts():
    """One clip that wants something else altogether changes nothing."""
    model = network().eval()
    usual = clips(1, seed=4)[0][:1]
    many = torch.cat([usual] * 5)
    strange = torch.cat((many, 1e3 * torch.randn_like(usual)))
    assert common_options(model, [many], 0.6) == common_options(model, [strange], 0.6)


def test_only_options_in_use_are_left():
    model = network().eval()
    for layer in dynamic_layers(model).values():
        layer.temporal_options.use([1])
    options, ratio = common_options(model, clips(1, seed=5), 1.0)
    assert {temporal for _, temporal in options.values()} == {1}
    assert {channel for channel, _ in options.values()} == {0}
    assert 0.4 < ratio < 0.7


def _ask_together(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2
    )
    found = common_options(network().eval(), clips(1, seed=rank), 0.6)
    torch.save(found, folder / f'{rank}.pt')
    leave_process_group()


def test_processes_that_see_other_clips_agree(tmp_path):
    multiprocessing.start_processes(_ask_together, (tmp_path,), nprocs=2, start_method='fork')
    first, second = (torch.load(tmp_path / f'{rank}.pt') for rank in (0, 1))
    assert first == second
    alone = [common_options(network().eval(), clips(1, seed=rank), 0.6)[0] for rank in (0, 1)]
    assert alone[0] != alone[1]


@pytest.mark.parametrize('recipe', ['study/vared2_r2plus1d.py', 'demo/vared2_r2plus1d.py'])
@pytest.mark.parametrize('std', [0.0, 0.3])
def test_recipes_come_near_to_any_budget(recipe, std):
    register_all_modules()
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(CONFIGS / recipe).model.backbone)
    model.eval()  # does not return the module
    for layer in dynamic_layers(model).values():  # as they start, and as if they had learned
        layer.gate.fc2.bias.data += std * torch.randn_like(layer.gate.fc2.bias)
    loader = [torch.randn(2, 3, 32, 32, 32)]
    for budget in (0.3, 0.4, 0.6, 0.8):
        assert abs(common_options(model, loader, budget)[1] - budget) <= 0.02, budget
