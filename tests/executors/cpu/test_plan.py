# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Planned convolutions: one view, one call and one view make what the layer makes."""

import pytest
import torch
from mmengine.utils import digit_version

from vared2_mmaction.executors.cpu.packed import PackedConvolution, packs
from vared2_mmaction.executors.cpu.plan import adds_to_elements, plan
from vared2_mmaction.executors.records import record_of

from ..layers import IN_2D, clips, folded

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason='PyTorch without oneDNN plans nothing'
)


@torch.no_grad()
@pytest.mark.parametrize('number', [1, 3])
@pytest.mark.parametrize('case', IN_2D, ids=lambda case: case.name)
def test_a_plan_makes_what_the_layer_makes(case, number):
    layer, x = folded(case), clips(case, number)
    record = record_of(layer, 'layer', relu=False)
    assert packs(record)
    packed = PackedConvolution(record)
    for channel, temporal in ((0, 0), (1, 1), (2, 0)):
        if channel >= layer.num_options[0] or temporal >= layer.num_options[1]:
            continue
        expected = layer.convolve(x, channel, temporal)
        torch.testing.assert_close(packed(x, channel, temporal), expected, rtol=1e-5, atol=1e-4)
        made = plan(packed, tuple(x.shape), channel, temporal)
        if made is None:
            assert layer.kernel_size[0] > 1 or expected.shape[2:] == (1, 1, 1)
            continue
        frames = x[:, :, :: made.step].contiguous(memory_format=torch.channels_last_3d)
        y = made.call(frames.as_strided(*made.view))
        assert (tuple(y.shape), y.stride()) == made.convolved
        torch.testing.assert_close(
            y.permute(0, 2, 3, 1).flatten(),
            expected.permute(0, 2, 3, 4, 1).flatten(),
            rtol=1e-5,
            atol=1e-4,
        )


def test_pytorch_adds_to_maps_of_one_element_since_2_13():
    assert adds_to_elements() or digit_version(torch.__version__) < digit_version('2.13')
