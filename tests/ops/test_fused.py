# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Layers that have taken in a BatchNorm."""

import math

import pytest
import torch
from torch import nn

from vared2_mmaction.ops.fused import FusedConv2d, FusedConv3d, TwoKernelConv3d, fold_norm

from .layers import Case, build, clips, every_modulation

CONV = {'in_channels': 3, 'out_channels': 10, 'kernel_size': 3, 'padding': 1}


def normalisation(case):
    norm = (nn.BatchNorm3d if case.rank == 3 else nn.BatchNorm2d)(10).double().eval()
    for tensor, low, high in (
        (norm.running_mean, -2, 2),
        (norm.running_var, 0.3, 3),
        (norm.weight.data, 0.5, 2),
        (norm.bias.data, -1, 1),
    ):
        tensor.uniform_(low, high)
    norm.weight.data[::2] *= -1
    return norm


def small(norm):
    norm.weight.data[1] = 1e-7


def zero(norm):
    norm.weight.data[2] = 0


def zero_everywhere(norm):  # as stock residual blocks start
    norm.weight.data.zero_()


@pytest.mark.parametrize(
    ('case', 'change', 'kind'),
    [
        (Case('one kernel', CONV, 7), None, FusedConv3d),
        (Case('one kernel in 2-D', CONV, 6, rank=2), None, FusedConv2d),
        (Case('time only', CONV, 7, channel=1), zero, FusedConv3d),
        (Case('next to nothing', CONV, 7), small, TwoKernelConv3d),
        (Case('nothing', CONV, 7), zero, TwoKernelConv3d),
        (Case('nothing anywhere', CONV, 7), zero_everywhere, TwoKernelConv3d),
        (Case('not normalised', CONV, 7, saturation=None), None, TwoKernelConv3d),
        (Case('depthwise', CONV, 7, kinds=('depthwise',) * 2), None, TwoKernelConv3d),
        (Case('stick', CONV, 7, saturation=0.5), None, FusedConv3d),
    ],
    ids=lambda value: getattr(value, 'name', ''),
)
def test_a_layer_with_its_norm_is_the_layer_and_then_the_norm(case, change, kind):
    layer, x, norm = build(case).eval(), clips(case, 3), normalisation(case)
    if change is not None:
        change(norm)
    modulations = every_modulation(layer, x)
    apply = norm if case.rank == 3 else lambda y: norm(y.transpose(1, 2).flatten(0, 1))
    with torch.no_grad():
        expected = [apply(layer.modulate(x, m)[0]) for m in modulations]
        full = apply(layer._whole(x))
        fold_norm(layer, norm)
        assert type(layer) is kind
        found = [layer.modulate(x, m)[0] for m in modulations]
        for a, b in zip([*found, layer._whole(x)], [*expected, full], strict=True):
            a = a if case.rank == 3 else a.transpose(1, 2).flatten(0, 1)
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert case.saturation is None or math.isfinite(sum(p.sum().item() for p in layer.parameters()))
