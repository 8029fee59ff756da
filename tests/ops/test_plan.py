# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Planned convolutions: the same result in fewer steps, and no plan where one would be wrong."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from mmengine.utils import digit_version

from vared2_mmaction.ops import packed
from vared2_mmaction.ops.epilogue import Epilogue
from vared2_mmaction.ops.forms import convolve
from vared2_mmaction.ops.plan import Plans, adds_to_elements

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason='PyTorch without oneDNN plans nothing'
)
CASES = {  # kernel, stride, padding
    'in space': ((1, 3, 3), (1, 1, 1), (0, 1, 1)),
    'in time': ((3, 1, 1), (1, 1, 1), (1, 0, 0)),
    'every second frame in space': ((1, 3, 3), (2, 1, 1), (0, 1, 1)),
    'every second frame in time': ((3, 1, 1), (2, 1, 1), (1, 0, 0)),
    'pointwise': ((1, 1, 1), (1, 1, 1), (0, 0, 0)),
    'pointwise with steps': ((1, 1, 1), (2, 2, 2), (0, 0, 0)),
}


class Layer:
    """A convolution that notes how often it took all steps."""

    def __init__(self, case, outputs=20, channels=16):
        kernel, self.stride, self.padding = CASES[case]
        self.weight = torch.randn(outputs, channels, *kernel)
        self.weight = self.weight.to(memory_format=torch.channels_last_3d)
        self.bias, self.plans, self.steps = torch.randn(outputs), Plans(), 0

    def __call__(self, x, channels=20):
        def general(conv2d=F.conv2d):
            self.steps += 1
            weight, bias = self.weight[:channels], self.bias[:channels]
            return convolve(x, weight, bias, self.stride, self.padding, (1, 1, 1), 1, conv2d)

        y = self.plans.convolve(x, self.weight, self.bias, channels, general)
        expected = F.conv3d(
            x, self.weight[:channels], self.bias[:channels], self.stride, self.padding
        )
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-4)
        return y


def clips(number=1, frames=4, channels=16):
    return torch.randn(number, channels, frames, 6, 5).to(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize('case', CASES)
def test_the_second_of_a_kind_takes_no_steps(case):
    layer = Layer(case)
    with torch.no_grad():
        y = layer(clips())
        assert layer.steps == 1
        again = layer(clips())
        assert layer.steps == 1
        assert (again.shape, again.stride()) == (y.shape, y.stride())
        for x, channels in ((clips(), 10), (clips(frames=6), 20), (clips(2)[1:], 20)):
            before = layer.steps
            layer(x, channels)
            layer(x, channels)
            assert layer.steps <= before + 1  # the view of one clip may lie as a clip of its own


@pytest.mark.parametrize(('channels', 'outputs'), [(16, 20), (16, 1)])
@pytest.mark.parametrize('size', [(1, 1, 1), (3, 1, 1), (1, 1, 5), (2, 4, 3)])
@pytest.mark.parametrize('number', [1, 2])
def test_a_residual_is_added_to_maps_of_any_size(number, size, channels, outputs):
    """PyTorch 2.8 cannot to those of one element, for which there is no plan then."""
    layout = {'memory_format': torch.channels_last_3d}
    layer = Layer('in time', outputs, channels)
    x = torch.randn(number, channels, *size).to(**layout)
    residual = torch.randn(number, outputs, *size).to(**layout)

    def general(conv2d=F.conv2d):
        layer.steps += 1
        return convolve(x, layer.weight, layer.bias, (1, 1, 1), (1, 0, 0), (1, 1, 1), 1, conv2d)

    expected = F.relu(F.conv3d(x, layer.weight, layer.bias, 1, (1, 0, 0)) + residual)
    with torch.no_grad():
        for _ in range(2):
            y = layer.plans.convolve(
                x, layer.weight, layer.bias, (), general, Epilogue(residual, True)
            )
            torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-4)
    planned = size != (1, 1, 1) or adds_to_elements()
    assert layer.steps == (1 if planned else 2)


def test_a_view_inside_other_clips():
    layer, batch = Layer('in time'), clips(3)
    with torch.no_grad():
        for i in range(3):
            layer(batch[i : i + 1])
    assert layer.steps == 1


def test_copies_of_the_input_are_not_planned():
    """Every second frame of several clips is copied together first."""
    layer = Layer('every second frame in space')
    with torch.no_grad():
        for steps in (1, 2, 3):
            layer(clips(2, frames=5))
            assert layer.steps == steps


@pytest.mark.parametrize(
    'change',
    [
        lambda layer: layer.weight.mul_(2),
        lambda layer: setattr(layer, 'weight', layer.weight * 2),
        lambda layer: layer.bias.mul_(2),
        lambda layer: setattr(layer, 'bias', layer.bias * 2),
    ],
    ids=['weight in place', 'weight', 'bias in place', 'bias'],
)
def test_other_parameters_are_noticed(change):
    layer = Layer('in space')
    with torch.no_grad():
        layer(clips())
        change(layer)
        layer(clips())
        steps = layer.steps
        layer(clips())
        assert layer.steps == steps  # planned again


def test_gradients_and_other_types_take_all_steps():
    layer = Layer('in space')
    layer(clips().requires_grad_()).sum().backward()
    layer(clips().requires_grad_()).sum().backward()
    with torch.no_grad():
        layer.weight, layer.bias = layer.weight.double(), layer.bias.double()
        layer(clips().double())
        layer(clips().double())
    assert layer.steps == 4
    assert not layer.plans.tensors()


def test_planned_when_gradients_are_no_longer_asked_for():
    layer, x = Layer('in space'), clips()
    layer(x)
    with torch.no_grad():
        layer(x)
        assert layer.steps == 2
        layer(x)
    assert layer.steps == 2


def test_what_is_done_to_the_result_is_not_left_out():
    plans, x, weight = Plans(), clips(), torch.randn(8, 16, 1, 1)

    def general(conv2d):
        return 2 * conv2d(x[:, :, 0], weight, None, (1, 1), (0, 0), (1, 1), 1)

    with torch.no_grad():
        for _ in range(2):
            y = plans.convolve(x, weight, None, 0, general)
            torch.testing.assert_close(y, 2 * F.conv2d(x[:, :, 0], weight))


def test_several_convolutions_are_not_planned():
    plans, x = Plans(), clips()
    weight = torch.randn(8, 16, 1, 1)

    def general(conv2d):
        maps = x[:, :, 0].contiguous(memory_format=torch.channels_last)
        parts = [conv2d(maps, weight, None, (1, 1), (0, 0), (1, 1), 1) for _ in range(2)]
        return torch.cat(parts, 1)

    def in_place(conv2d):
        parts = [conv2d(x[:, :, 0], weight, None, (1, 1), (0, 0), (1, 1), 1) for _ in range(2)]
        return parts[0].add_(parts[1])

    with torch.no_grad():
        for _ in range(3):
            y = plans.convolve(x, weight, None, 'beside each other', general)
            torch.testing.assert_close(y, F.conv2d(x[:, :, 0], torch.cat((weight, weight))))
            y = plans.convolve(x, weight, None, 'in place', in_place)
            torch.testing.assert_close(y, 2 * F.conv2d(x[:, :, 0], weight))


def test_too_many_shapes(monkeypatch):
    monkeypatch.setattr(packed, 'MAX_SHAPES', 2)
    layer = Layer('in space')
    with torch.no_grad():
        for frames in (2, 3, 4, 4, 2):
            layer(clips(frames=frames))
    assert layer.steps == 4
    assert len(layer.plans._plans) == 2


@pytest.mark.parametrize('clone', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_plan_for_themselves(clone):
    layer = Layer('in space')
    with torch.no_grad():
        layer(clips())
        assert layer.plans.tensors()
        layer.plans = clone(layer.plans)
        assert not layer.plans.tensors()
        layer(clips())
    assert layer.steps == 2


def test_pytorch_adds_to_maps_of_one_element_since_2_13():
    assert adds_to_elements() or digit_version(torch.__version__) < digit_version('2.13')
