# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What is wrong with an option is said by its name, and nothing is converted."""

import math
import re

import numpy as np
import pytest
from mmaction.registry import MODELS
from torch import nn

import studies.random_gate  # noqa: F401  (registers the gate that draws)
from vared2_mmaction import dynamize
from vared2_mmaction.models.layers import DynamicOptions
from vared2_mmaction.ops import ComputationBudgetLoss

from .recognizers import CLASSES

NUMBERS = ['1', None, True, math.nan, [1], 1j]
"""What is no number."""
WHOLE = [*NUMBERS, 1.0, math.inf]
"""What is no whole number."""
FLAGS = ['True', 'no', 0, 1, None, []]
"""What is no truth value."""

WRONG = {
    'channel': [*WHOLE, 0, 5, -1],
    'temporal': [*WHOLE, 0, 5, -1],
    'layers': [['a'], '(', '*', 3, True, {}],
    'gate': ['big', True, ['x'], 3, None],
    'channel_multiple': [*WHOLE, 0, -1],
    'num_segments': [*(value for value in WHOLE if value is not None), 0, -1],
    'compiled': FLAGS,
}
WRONG_OF_GATE = {
    'type': ['Nothing', 5, None],
    'hidden_channels': [*WHOLE, 0, -1],
    'motion': FLAGS,
    'floor': [*NUMBERS, 0, 1, -0.1, 1.5],
    'motion_slope': [*NUMBERS, -0.1, math.inf],
    'initial': [None, 0.5, True, [0.5, '0.1', 0.1], ['0.5', 0.1, 0.1], 'abc', [math.nan] * 3],
    'initial.channel': [None, 0.5, '0.5', [0.5, None, 0.1], [True, 0.1, 0.1]],
}
WRONG_OF_LOSS = {
    'loss_weight': [*NUMBERS, -0.1, math.inf],
    'budget': ['0.6', None, True, math.nan, [0.6], -0.1, 1, 1.5, math.inf],
    'correct_only': FLAGS,
    'per_clip': FLAGS,
}


def cases(wrong):
    return [(key, value) for key, values in wrong.items() for value in values]


def named(key, value):
    """The error of a value: one line, which says its name, itself and what was expected."""
    return pytest.raises(ValueError, match=rf'\A{re.escape(key)}[^\n]*: expected [^\n]*\Z')


@pytest.mark.parametrize(('key', 'value'), cases(WRONG))
def test_options_of_layers(key, value):
    with named(key if key == 'num_segments' else f'dynamic.{key}', value):
        DynamicOptions.parse({key: value})


@pytest.mark.parametrize(('key', 'value'), cases(WRONG_OF_GATE))
def test_options_of_gates(key, value):
    name, _, dimension = key.partition('.')
    with named(f'dynamic.gate.{key}', value):
        DynamicOptions.parse({'gate': {name: {dimension: value} if dimension else value}})


@pytest.mark.parametrize(('key', 'value'), cases(WRONG_OF_LOSS))
def test_options_of_the_budget_loss(key, value):
    with named(f'loss_budget.{key}', value):
        ComputationBudgetLoss(**{key: value})


@pytest.mark.parametrize('dynamic', [True, False, 3, 'all', ['channel'], [('channel', 2)]])
@pytest.mark.parametrize('kind', ['VARED2ResNet', 'VARED2ResNet3d', 'VARED2Backbone'])
def test_options_that_are_none(kind, dynamic):
    inner = {'type': 'ResNet3d', 'depth': 18, 'pretrained': None, 'base_channels': 4}
    own = {
        'VARED2ResNet': {
            'depth': 18,
            'num_segments': 8,
            'num_stages': 1,
            'strides': (1,),
            'dilations': (1,),
            'out_indices': (0,),
        },
        'VARED2ResNet3d': {'depth': 50, 'pretrained': None, 'base_channels': 4},
        'VARED2Backbone': {'backbone': inner},
    }
    with named('dynamic', dynamic):
        MODELS.build({'type': kind, 'dynamic': dynamic, **own[kind]})


def test_text_for_the_number_of_segments():
    with named('num_segments', '8'):
        MODELS.build({'type': 'VARED2ResNet', 'depth': 18, 'num_segments': '8'})


@pytest.mark.parametrize('loss_budget', [0.6, True, 'x', [0.6]])
@pytest.mark.parametrize('kind', ['VARED2I3DHead', 'VARED2Head'])
def test_a_budget_loss_that_is_no_mapping(kind, loss_budget):
    head = {'num_classes': CLASSES, 'in_channels': 4}
    if kind == 'VARED2Head':
        head = {'head': {'type': 'I3DHead', **head}}
    with named('loss_budget', loss_budget):
        MODELS.build({'type': kind, 'loss_budget': loss_budget, **head})


@pytest.mark.parametrize('head', [None, 'I3DHead', 3])
def test_a_head_that_is_no_mapping(head):
    with named('VARED2Head: head', head):
        MODELS.build({'type': 'VARED2Head', 'head': head})


def test_unknown_options_are_named():
    for options, name in (
        ({'chanel': 2}, "dynamic has an unknown option 'chanel'"),
        ({'gate': {'hidden': 2}}, "dynamic.gate has an unknown option 'hidden'"),
        ({'gate': {'in_channels': 2}}, "dynamic.gate has an unknown option 'in_channels'"),
        (
            {'gate': {'type': 'RandomPolicyGate', 'floor': 0.1}},
            r"dynamic.gate has an unknown option 'floor': expected \['thrift'\]",
        ),
    ):
        with pytest.raises(ValueError, match=name):
            DynamicOptions.parse(options)
    head = {'type': 'VARED2I3DHead', 'num_classes': 2, 'in_channels': 4}
    with pytest.raises(ValueError, match="loss_budget has an unknown option 'weight'"):
        MODELS.build({**head, 'loss_budget': {'weight': 1}})


@pytest.mark.parametrize('thrift', [*NUMBERS, -0.1, 1.1])
def test_thrift_of_random_gates(thrift):
    with named('dynamic.gate.thrift', thrift):
        MODELS.build(
            dict(
                type='RandomPolicyGate',
                in_channels=4,
                channel_options=3,
                temporal_options=3,
                thrift=thrift,
            )
        )


def test_right_values_are_taken():
    DynamicOptions.parse(
        dict(
            channel=1,
            temporal=4,
            layers='layer3|layer4',
            gate=dict(
                type='mmaction.SoftModulationGate',
                hidden_channels=np.int64(8),
                motion_slope=0,
                initial=dict(temporal=(0.5, 0.4, 0.3, np.float32(0.2))),
                floor=0.5,
            ),
            channel_multiple=16,
            num_segments=8,
        )
    )
    assert DynamicOptions.parse(None) == DynamicOptions.parse({}) == DynamicOptions()
    loss = ComputationBudgetLoss(loss_weight=1, budget=0, correct_only=False, per_clip=False)
    assert (loss.loss_weight, loss.budget) == (1, 0)
    backbone = MODELS.build({'type': 'ResNet', 'depth': 18})
    with named('num_segments', 2.0):
        dynamize(backbone, num_segments=2.0)


def test_a_backbone_that_was_refused_is_as_before():
    """A later layer has more options than weights to start with."""

    class TwoLayers(nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow, self.wide = nn.Conv3d(3, 2, 1), nn.Conv3d(2, 8, 1)

        def forward(self, x):
            return self.wide(self.narrow(x))

    backbone = TwoLayers()
    with pytest.raises(ValueError, match=r'gate\.initial.*expected 3 or more'):
        dynamize(backbone, layers='.', gate={'initial': {'channel': (0.9, 0.1)}})
    assert {type(module) for module in backbone.children()} == {nn.Conv3d}
    assert dynamize(backbone, layers='.').dynamic_layers == ('narrow', 'wide')
