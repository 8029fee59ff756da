# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Layers that take in a BatchNorm, where they can."""

import pytest
import torch
from torch import nn

from vared2_mmaction.deploy.fold import fold_norm

from ..ops.layers import Case, build, clips, every_modulation

pytestmark = pytest.mark.fast

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
    ('case', 'change', 'folds'),
    [
        (Case('usual', CONV, 7), None, True),
        (Case('in 2-D', CONV, 6, rank=2), None, True),
        (Case('time only', CONV, 7, channel=1), zero, True),
        (Case('next to nothing', CONV, 7), small, False),
        (Case('nothing', CONV, 7), zero, False),
        (Case('nothing anywhere', CONV, 7), zero_everywhere, True),
    ],
    ids=lambda value: getattr(value, 'name', ''),
)
def test_a_layer_with_its_norm_is_the_layer_and_then_the_norm(case, change, folds):
    layer, x, norm = build(case).eval(), clips(case, 3), normalisation(case)
    if change is not None:
        change(norm)
    modulations, options = every_modulation(layer, x), layer.options_of(x.shape[2])[0]
    apply = norm if case.rank == 3 else lambda y: norm(y.transpose(1, 2).flatten(0, 1))
    with torch.no_grad():
        expected = [apply(layer.modulate(x, m, options)) for m in modulations]
        full = apply(layer.convolve(x))
        assert fold_norm(layer, norm) == folds
        found = [*(layer.modulate(x, m, options) for m in modulations), layer.convolve(x)]
        for y, b in zip(found, [*expected, full], strict=True):
            frames = y if case.rank == 3 else y.transpose(1, 2).flatten(0, 1)
            # What is not folded is called as ever.
            torch.testing.assert_close(frames if folds else apply(y), b, rtol=1e-9, atol=1e-9)
