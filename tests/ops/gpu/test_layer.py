# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Layers by kernels do what they do by operations of PyTorch."""

import copy
import math

import pytest
import torch
from torch import nn

from vared2_mmaction.models.forms import FormedConv2d, FormedConv3d, use_forms
from vared2_mmaction.ops import collect
from vared2_mmaction.ops.compiled import tells_kernels
from vared2_mmaction.ops.decision import ChargedDecision, charge_on_host
from vared2_mmaction.ops.forced import Forced
from vared2_mmaction.ops.fused_gate import FusedGate
from vared2_mmaction.ops.gate import open_options
from vared2_mmaction.ops.gpu import OLDEST

from ..layers import CASES, Case
from ..test_compiled import clips, fused, zero
from .device import DEVICE, HALF, needs_kernels

pytest.importorskip('triton', minversion=OLDEST)

from vared2_mmaction.ops.gpu import layer as module
from vared2_mmaction.ops.gpu.gate import DeviceGate
from vared2_mmaction.ops.gpu.layer import DeviceConv
from vared2_mmaction.ops.gpu.padded import is_followed, padded_channels, widened

pytestmark = needs_kernels
TWO = ('odd', '2d')
IN_BETWEEN = 'padding in between'
SAME = {'kernel_size': 3, 'padding': 1}
NAMES = ('plain', 'odd', 'stride', 'dilation', 'one frame', 'one channel', '2d')
SERVED = [
    *(case for case in CASES if case.name in (*NAMES, 'vectors', 'four options', 'channel only')),
    Case('padding before and after', {'in_channels': 3, 'out_channels': 6, **SAME}, frames=1),
    Case(
        IN_BETWEEN,
        {'in_channels': 3, 'out_channels': 6, **SAME, 'padding': 2, 'dilation': 2},
        frames=2,
    ),
]


def pair(case, change=None, std=2.0):
    """A fused layer by kernels, and its twin by operations."""
    layer = fused(case, change)
    nn.init.normal_(layer.gate.fc2.weight, std=std)
    twin = copy.deepcopy(layer).to(DEVICE)
    twin.compiled, twin.fused_gate = None, FusedGate(twin.gate)
    layer = layer.to(DEVICE)
    layer.compiled, layer.fused_gate = DeviceConv(), FusedGate(layer.gate, DeviceGate())
    return layer, twin


class Answers(nn.Module):
    """A gate that answers the same to everything."""

    def __init__(self, v):
        super().__init__()
        self.v = torch.as_tensor(v, dtype=torch.float32, device=DEVICE)

    def is_watched(self):
        return False

    def forward(self, clips, options):
        return open_options(self.v, (self.v.shape[-1], options), 0.05)

    def weigh(self, clips):
        return self.v


def run(layer, x, *residual):
    """Output and what is charged."""
    with torch.no_grad(), collect() as decisions:
        y = layer(x, *residual)
    (decision,) = decisions.layers[layer.layer_name]
    if isinstance(decision, ChargedDecision):
        return y, decision.charges.cpu()
    return y, torch.tensor(charge_on_host(decision), dtype=torch.float64)


def equal(found, expected, tolerance=1e-4):
    torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=tolerance)
    assert torch.equal(found[1], expected[1])


def inputs(case, layer, number=2):
    x = clips(case, number).to(DEVICE)
    return x if case.rank == 3 else layer._from_clips(x)


@pytest.mark.parametrize('forced', [None, [[1, 1]], [[0, 2], [5, 0]]], ids=str)
@pytest.mark.parametrize(
    ('case', 'change'),
    [*((case, None) for case in SERVED), *((case, zero) for case in SERVED if case.name in TWO)],
    ids=lambda value: getattr(value, 'name', 'not folded' if value else 'folded'),
)
def test_decides_and_convolves(case, change, forced):
    layer, twin = pair(case, change)
    assert tells_kernels(layer)
    x = inputs(case, layer)
    layer.forced = twin.forced = None if forced is None else Forced(torch.tensor(forced))
    found = run(layer, x)
    equal(found, run(twin, x))
    assert isinstance(layer.compiled._made, tuple)  # it was by kernels
    residual = torch.randn_like(found[0])
    layer.relu = twin.relu = True
    equal(run(layer, x, residual), run(twin, x, residual))
    layer.skip = False
    equal(run(layer, x), run(twin, x))


def test_blends_of_one_clip_beside_whole_ones():
    case = SERVED[0]
    layer, twin = pair(case)
    blended, whole, off = (
        [[0.5, 0.2, 0.1], [0.3, 0, 0.2]],
        [[0.9, -1, 0], [0.2, 0, 0]],
        [[-1, 0, 0]] * 2,
    )
    for one in (layer, twin):
        one.fused_gate = Answers([blended, whole, off])
    x = inputs(case, layer, 3)
    found = run(layer, x)
    equal(found, run(twin, x))
    assert found[1][:, 3:].tolist() == [[0, 0], [0, 0], [2, 2]]


def formed(*args, **kwargs):
    """A stock convolution by kernels, and its twin by operations."""
    holder = nn.Sequential(*args, **kwargs).to(DEVICE)
    use_forms(holder)
    (conv,) = holder
    twin = copy.deepcopy(conv)
    conv.compiled = DeviceConv()
    return conv, twin


def test_channels_that_fill_no_vector_are_followed_by_zeros():
    case = next(case for case in SERVED if case.name == 'odd')
    (first, first_twin), (second, second_twin) = pair(case), pair(case)
    second.in_channels = second_twin.in_channels = 7
    pointwise = torch.randn(7, 7, 1, 1, 1, device=DEVICE)
    for layer in (second, second_twin):
        layer.weight = nn.Parameter(pointwise)
        layer.kernel_size = (1, 1, 1)
        layer.forced = Forced(torch.tensor([[1, 0], [0, 1]]))
        layer.fused_gate = Answers(torch.ones(2, 2, 3))
    x = inputs(case, first)
    y, _ = run(first, x)
    memory = y.as_strided(
        (*y.shape[:1], *y.shape[2:], padded_channels(7)), (y.stride(0), *y.stride()[2:], 1)
    )
    assert y.stride(4) == padded_channels(7)
    assert memory[..., 7:].eq(0).all()
    equal(run(second, y), run(second_twin, run(first_twin, x)[0]))
    # They are relied on where a layer of this kind wrote them, and nowhere else.
    strange = memory.clone()
    strange[..., 7:] = math.nan
    strange = strange[..., :7].movedim(-1, 1)
    equal(run(second, strange), run(second_twin, y))


@pytest.mark.parametrize('channels', [8, 5])
@pytest.mark.parametrize('rank', [2, 3])
def test_stock_convolutions(rank, channels):
    kind = nn.Conv3d if rank == 3 else nn.Conv2d
    conv, twin = formed(kind(channels, 16, 3, stride=2, padding=1))
    assert type(conv) is (FormedConv3d if rank == 3 else FormedConv2d)
    x = torch.randn(2, channels, 5, 6, 7, device=DEVICE)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    x = x if rank == 3 else x[:, :, 0].contiguous(memory_format=torch.channels_last)
    conv.relu = twin.relu = True
    with torch.no_grad():
        expected = twin(x)
        torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-4)
        residual = torch.randn_like(expected)
        torch.testing.assert_close(conv(x, residual), twin(x, residual), rtol=1e-4, atol=1e-4)
        with torch.autocast(DEVICE, HALF):
            torch.testing.assert_close(conv(x).float(), expected, rtol=0.05, atol=0.05)
    assert conv.compiled._made is not None


@pytest.mark.parametrize('way', [0, 1, 2, 3])
@pytest.mark.parametrize('with_residual', [False, True])
def test_every_way_to_convolve_serves_channels_that_fill_no_vector(way, with_residual, monkeypatch):
    ways = []

    def choose(key, candidates):
        ways.append(len(candidates()))
        return way % ways[-1]

    monkeypatch.setattr(module, 'fastest', choose)
    (first, first_twin), (second, second_twin) = (
        formed(nn.Conv3d(*channels, (1, 3, 3), padding=(0, 1, 1), bias=bias))
        for *channels, bias in ((3, 21, True), (21, 5, False))
    )
    x = torch.randn(2, 3, 4, 6, 7, device=DEVICE)
    first.relu = first_twin.relu = True
    with torch.no_grad():
        residual = torch.randn_like(first_twin(x)) if with_residual else None
        expected, y = first_twin(x, residual), first(x, residual)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(second(y), second_twin(expected), rtol=1e-4, atol=1e-4)
        if is_followed(y):
            assert widened(y)[:, 21:].eq(0).all()
    assert ways[0] >= (1 if with_residual else 2)


def test_residuals_and_clips_may_lie_anyhow():
    case = next(case for case in SERVED if case.name == 'plain')
    layer, twin = pair(case)
    clips_like = clips(case, 2)
    y, _ = run(twin, clips_like.to(DEVICE))

    def lying(like):
        """Maps of a shape in all ways: of more channels, strided, cropped, channels first."""
        number, channels, frames, height, width = like.shape
        sizes = (number, frames + 1, height + 2, width + 3, 3 * channels)
        maps = torch.randn(sizes, device=DEVICE).movedim(-1, 1)
        cropped = maps[:, :, :frames]
        yield cropped[..., :channels, :, :, :][..., :height, :width]
        whole = torch.randn(number, frames, height, width, 3 * channels, device=DEVICE)
        yield whole.movedim(-1, 1)[:, :channels]
        yield whole.movedim(-1, 1)[:, ::3]
        yield torch.randn(like.shape, device=DEVICE)

    for x, residual in zip(lying(clips_like), lying(y), strict=True):
        assert residual.shape == y.shape
        equal(run(layer, x, residual), run(twin, x, residual))


def test_weights_that_are_not_finite_are_seen_in_the_output():
    case = SERVED[0]
    layer, _ = pair(case)
    first = [0.5, 0, 0]
    layer.fused_gate = Answers([[first, first], [[0.5, math.nan, 0], first]])
    y, charged = run(layer, inputs(case, layer))
    assert y[0].isfinite().all()
    assert y[1].isnan().all()
    assert charged[:, 0].isnan().tolist() == [False, True]


def test_a_gate_that_is_watched_is_called():
    layer, twin = pair(SERVED[0])
    x, seen = inputs(SERVED[0], layer), []
    handle = layer.gate.register_forward_hook(lambda *_: seen.append(1))
    equal(run(layer, x), run(twin, x))
    assert seen == [1]
    handle.remove()
    equal(run(layer, x), run(twin, x))
    assert seen == [1]
    assert layer.compiled._made is not None


def test_a_policy_for_another_batch_is_named():
    layer, _ = pair(SERVED[0])
    layer.forced = Forced(torch.tensor([[0, 0], [1, 1]]))
    with pytest.raises(ValueError, match='expected a batch of 2 clips, got 3'):
        run(layer, inputs(SERVED[0], layer, 3))


def test_what_kernels_do_not_serve_goes_on_as_ever():
    layer, twin = pair(SERVED[0])
    x = inputs(SERVED[0], layer)
    for one in (layer, twin):
        one.requires_grad_(False)
    found, expected = (one(x.clone().requires_grad_()) for one in (layer, twin))
    torch.testing.assert_close(found, expected)
    assert layer.compiled._made is None
    with torch.no_grad():
        torch.testing.assert_close(layer.double()(x.double()), twin.double()(x.double()))


@pytest.mark.parametrize(
    ('name', 'taps'),
    [('plain', (0, 3)), ('padding before and after', (1, 1)), (IN_BETWEEN, (1, 1))],
)
def test_taps_that_see_padding_only_are_left_out(name, taps):
    case = next(case for case in SERVED if case.name == name)
    layer, _ = pair(case)
    x = inputs(case, layer)
    run(layer, x)
    assert layer.compiled._made.taps_in_time(x) == taps


def test_what_kernels_cannot_address_is_not_served():
    layer, _ = pair(SERVED[0])
    run(layer, inputs(SERVED[0], layer))
    made = layer.compiled._made

    def fits(*shape, step=4):
        frames, height, width = shape[2:]
        sizes = (step * width * height * frames, 1, step * width * height, step * width, step)
        return made.fits(torch.empty_strided(shape, sizes, device='meta'))

    assert fits(1, 4, 4, 500, 500)
    assert not fits(1, 4, 5, 500, 500)  # positions
    assert fits(2, 4, 4, 64, 64, step=2**15)
    assert not fits(2, 4, 4, 64, 64, step=2**17)
    assert not fits(1025, 4, 4, 5, 5)


def test_parameters_that_change_are_noticed():
    layer, twin = pair(SERVED[0])
    x = inputs(SERVED[0], layer)
    for factor in (1, 3):
        with torch.no_grad():
            layer.weight.mul_(factor)
            twin.weight.mul_(factor)
        equal(run(layer, x), run(twin, x))


@pytest.mark.parametrize('name', ['plain', '2d'])
def test_half_precision(name):
    case = next(case for case in SERVED if case.name == name)
    layer, twin = pair(case)
    layer.forced = twin.forced = Forced(torch.tensor([[1, 1], [0, 0]]))
    x = inputs(case, layer)
    expected, _ = run(twin, x.to(HALF).float())
    with torch.autocast(DEVICE, HALF):
        found, _ = run(layer, x)
    assert found.dtype == HALF
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
