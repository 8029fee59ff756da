# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Blending by kernels does what blending channels and then frames does."""

import itertools

import pytest
import torch
from torch import nn

from vared2_mmaction.ops import ChannelOptions, TemporalOptions

pytest.importorskip('triton')

from vared2_mmaction.ops.gpu import trained as module
from vared2_mmaction.ops.gpu.launch import INTERPRETED
from vared2_mmaction.ops.gpu.trained import blend, serves

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() or INTERPRETED), reason='needs a GPU or the interpreter'
)
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
LAYOUTS = {
    'channels last': lambda z: z.contiguous(memory_format=torch.channels_last_3d),
    'channels first': lambda z: z.contiguous(),
    'frames first': lambda z: z.transpose(1, 2).contiguous().transpose(1, 2),
}
CASES = [  # clips, channels, frames, active channel options, active temporal options
    (3, 7, 5, [0, 1, 2], [0, 1, 2]),
    (1, 10, 7, [1, 2], [0]),
    (2, 7, 7, [0], [1, 2]),
    (3, 10, 5, [2], [0, 1]),
    (2, 8, 8, [0, 2], [1]),
    (2, 9, 8, [1, 3], [0, 2]),
    (1, 1, 4, [0], [0, 1]),
    (2, 10, 6, [1], [0]),  # nothing is blended: no dimension has shares
    (2, 7, 5, [0], [1]),
    (3, 10, 7, [2], [2]),
]


def run(function, case, layout, dtype=torch.float32, precision=None, area=(3, 4)):
    """Output and gradients: of what is computed, of weights and of parameters.

    Inputs are rounded to a type, and what is made of them is of the given precision.
    """
    precision = precision or dtype
    clips, channels, frames, *active = case
    torch.manual_seed(0)
    options = ChannelOptions(channels, 4, 'affine'), TemporalOptions(channels, 4, 'affine')
    for parameter in (*options[0].parameters(), *options[1].parameters()):
        nn.init.normal_(parameter)
    z = torch.randn(clips, options[0].kept[active[0][0]], -(-frames // 2 ** active[1][0]), *area)
    weights = [torch.zeros(clips, 4) for _ in active]
    for v, chosen in zip(weights, active, strict=True):
        v[:, chosen] = torch.rand(clips, len(chosen)) + 0.1
    gradient = torch.randn(clips, channels, frames, *area).to(dtype).to(DEVICE, precision)
    z = LAYOUTS[layout](z.to(dtype).to(DEVICE, precision)).requires_grad_()
    weights = [v.to(DEVICE).requires_grad_() for v in weights]
    of = [
        (v / v.sum(1, keepdim=True)).to(dtype).to(precision) if len(chosen) > 1 else None
        for v, chosen in zip(weights, active, strict=True)
    ]
    for option in options:
        option.to(DEVICE)
    y = function(z, options, of, active, frames)
    y.backward(gradient)
    # What is off has no share, and its gradient goes nowhere.
    of_weights = [None if v.grad is None else v.grad * (v > 0) for v in weights]
    parameters = itertools.chain(*(option.parameters() for option in options))
    return y.detach(), z.grad, *of_weights, *(p.grad for p in parameters)


def general(z, options, shares, active, frames):
    """As a layer blends that has no kernel."""
    y = options[0](z, shares[0], active[0], True)
    return options[1](y, shares[1], active[1], frames, True)


def check(case, layout, tolerance, dtype=torch.float32, **settings):
    found = run(blend, case, layout, dtype, **settings)
    expected = run(general, case, layout, dtype, **settings)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        if b is None:
            assert a is None
        else:
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    return found


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('case', CASES, ids=str)
def test_output_and_gradients_are_those_of_the_general_way(case, layout):
    y, of_z, *_ = check(case, layout, 1e-5)
    assert module._layout(y) == module._layout(of_z)


def test_all_options():
    check((1, 9, 9, [0, 1, 2, 3], [0, 1, 2, 3]), 'channels last', 1e-5, area=(2, 2))


@pytest.mark.parametrize('programs', [1, 1024])
@pytest.mark.parametrize(
    ('layout', 'channels', 'area'),
    [
        ('channels last', 66, (6, 11)),
        ('channels first', 33, (20, 13)),
        ('frames first', 9, (20, 7)),
    ],
)
def test_maps_of_many_tiles(layout, channels, area, programs, monkeypatch):
    monkeypatch.setattr(module, '_PROGRAMS', programs)  # each of few takes several tiles
    check((1, channels, 3, [0, 1], [0, 1]), layout, 1e-4, area=area)


def test_many_clips():
    check((9, 5, 4, [0, 1, 2], [0, 2]), 'channels last', 1e-5)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_half_precision_rounds_only_what_is_written(layout):
    """To bfloat16's nearest but one, as the interpreter cuts digits off.

    The general way rounds what it keeps, too, so that it is a measure in float32 only.
    """
    case = CASES[0]
    found, exact = (
        run(function, case, layout, torch.bfloat16, precision)
        for function, precision in ((blend, torch.bfloat16), (general, torch.float32))
    )
    assert found[0].dtype == found[1].dtype == torch.bfloat16
    for a, b in zip(found, exact, strict=True):
        if b is not None:
            scale = b.abs().mean().item()  # of shares, rounded before, small ones are differences
            torch.testing.assert_close(a.float(), b, rtol=2**-7, atol=2**-6 * scale)


def test_shares_stay_in_single_precision_where_maps_do_not():
    """And they may lie behind others, and have columns for options that there are not."""
    case = CASES[0]

    def blend_whole(z, options, shares, active, frames):
        rows = torch.nn.functional.pad(torch.stack(list(shares)), (0, 0, 1, 1)).float()
        return blend(z, options, rows[:, 1:-1].unbind(), active, frames)

    rounded, whole = (
        run(function, case, 'channels last', torch.bfloat16) for function in (blend, blend_whole)
    )
    for i, (a, b) in enumerate(zip(rounded, whole, strict=True)):
        if i in (2, 3):  # gradients of shares, which are rounded where those are
            torch.testing.assert_close(a, b, rtol=2**-7, atol=2**-6 * b.abs().mean().item())
        else:
            assert a is b is None or torch.equal(a, b)


def test_gradients_are_the_same_in_every_run():
    first, second = (run(blend, CASES[0], 'channels last') for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a is b is None or torch.equal(a, b)


def test_what_wants_no_gradient_gets_none():
    options = ChannelOptions(6, 2, 'affine'), TemporalOptions(6, 2, 'affine')
    for option in options:
        option.requires_grad_(False).to(DEVICE)
    z = torch.randn(2, 6, 4, 3, 3, device=DEVICE, requires_grad=True)
    v = torch.full((2, 2), 0.5, device=DEVICE)
    active = [0, 1], [0, 1]
    grads = []
    for function in (blend, general):
        y = function(z, options, (v, v), active, 4)
        grads.append(torch.autograd.grad(y.mean(), z)[0])  # a gradient that is no dense map
    torch.testing.assert_close(*grads)
    with torch.no_grad():
        assert not blend(z, options, (v, v), active, 4).requires_grad


def test_what_is_frozen_gets_no_gradient_and_stays_as_it_is():
    options = ChannelOptions(6, 3, 'affine'), TemporalOptions(6, 3, 'affine')
    parameters = [p for option in options for p in option.to(DEVICE).parameters()]
    for parameter in parameters:
        nn.init.normal_(parameter)
    z = torch.randn(2, 6, 4, 3, 3, device=DEVICE)
    v = torch.full((2, 3), 1 / 3, device=DEVICE)
    active = [0, 1, 2], [0, 1, 2]
    before = [p.detach().clone() for p in parameters]
    expected = torch.autograd.grad(blend(z, options, (v, v), active, 4).square().sum(), parameters)
    for parameter in parameters[::3]:
        parameter.requires_grad_(False)
    blend(z, options, (v, v), active, 4).square().sum().backward()
    for i, (parameter, value) in enumerate(zip(parameters, before, strict=True)):
        assert torch.equal(parameter, value)
        assert parameter.grad is None if i % 3 == 0 else torch.equal(parameter.grad, expected[i])


def test_what_is_served():
    z = torch.randn(2, 6, 4, 3, 5, device=DEVICE)
    for lay in LAYOUTS.values():
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            assert serves(lay(z).to(dtype))
        assert not serves(lay(z).double())
        for view in (lay(z)[:, :, ::2], lay(z)[:, :3], lay(z)[..., ::2], lay(z).mT):
            assert not serves(view)
        assert serves(lay(z)[1:])
    assert not serves(z[0])


def test_what_is_not_computed_is_no_input():
    options = ChannelOptions(6, 2, 'affine'), TemporalOptions(6, 2, 'affine')
    for shape in ((1, 6, 4, 2, 2), (1, 3, 2, 2, 2)):
        with pytest.raises(ValueError, match='expected dense clips with 3 channels and 4 frames'):
            blend(torch.zeros(shape), options, (None, None), ([1], [0]), 4)
