# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The fixed network computes what most training clips asked for, whatever the clip."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from studies.fixed import FixedOptionsHook
from studies.match import backbone_of
from studies.study import Run, Study
from synthetic.moving_shapes import MovingShapes
from vared2_mmaction.apis.check import check_config
from vared2_mmaction.models import dynamic_layers, force_policies

CONFIGS = Path(__file__).parents[3] / 'configs' / 'study'


@torch.no_grad()
def test_all_clips_get_the_options():
    study = Study(CONFIGS, MovingShapes())
    backbone = backbone_of(study.config(Run('vared2', 0)))
    layers = dynamic_layers(backbone)
    options = [[i % 2, i % 3] for i in range(len(layers))]
    cfg = study.config(Run('fixed', 0), options)
    cfg.load_from = None
    check_config(cfg)
    (hook,) = cfg.custom_hooks
    assert hook.pop('type') == 'FixedOptionsHook'
    clips = torch.randn(2, 3, 32, 32, 32) * torch.tensor([1.0, 9.0]).view(2, 1, 1, 1, 1)
    with force_policies(backbone, torch.tensor([options])):
        expected = backbone(clips)
    FixedOptionsHook(**hook).before_train(SimpleNamespace(model=backbone))
    found = backbone(clips)
    torch.testing.assert_close(found.features, expected.features)
    gates = torch.tensor([0, *(layer.gate.macs() for layer in layers.values())])
    assert torch.equal(found.decisions[..., 2], expected.decisions[..., 2] - gates)  # not asked
    others = [0, 1, 3, 4]
    assert torch.equal(found.decisions[..., others], expected.decisions[..., others])
    assert (found.decisions[:, 1:, 3:5] == torch.tensor(options)).all()
    # What is not computed stays out of use in checkpoints.
    again = backbone_of(study.config(Run('vared2', 0)))
    again.load_state_dict(backbone.state_dict())
    in_use = [tuple(layer.in_use) for layer in dynamic_layers(again).values()]
    assert in_use == [((c,), (t,)) for c, t in options]


def test_other_networks_are_refused():
    backbone = backbone_of(Study(CONFIGS, MovingShapes()).config(Run('vared2', 0)))
    with pytest.raises(ValueError, match='shorter'):
        FixedOptionsHook([[0, 0]]).before_train(SimpleNamespace(model=backbone))
