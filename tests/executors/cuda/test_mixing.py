# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Kernels that mix options, with gradients, against the definition; tests/equality has them in
layers."""

import pytest
import torch
from torch import nn

from vared2_mmaction.layout import from_memory_order, in_memory_order
from vared2_mmaction.ops.cheap import ChannelOptions, TemporalOptions
from vared2_mmaction.ops.mixing import Shares, mix
from vared2_mmaction.ops.options import Options, kept

from ..cuda.device import DEVICE, needs_gpu, needs_kernels

pytestmark = needs_kernels
ALL = (0, 1, 2)
CASES = {
    # channels, clips, frames, positions, options, channel_multiple
    'whole': (16, 1, 8, (3, 4), Options(ALL, ALL), 1),
    'odd': (11, 2, 7, (5, 5), Options((1, 2), (1, 2)), 1),
    'rounded': (26, 1, 6, (3, 3), Options((0, 2), (0, 2)), 4),
    'many clips': (9, 9, 2, (2, 3), Options((1,), (0,)), 1),
    'frames only': (9, 2, 5, (2, 3), Options((0,), (1,)), 1),
    'wide': (70, 1, 2, (2, 3), Options((0, 1, 2, 3), (0, 1)), 1),
    'four': (8, 1, 8, (2, 3), Options((0, 3), (0, 1, 2, 3)), 1),
    'one frame': (8, 2, 1, (4, 4), Options(ALL, (0,)), 1),
    'tiles': (3, 1, 2, (23, 24), Options((0, 1), (0, 1)), 1),
    'tiles of vectors': (16, 1, 2, (8, 9), Options((0, 1), (0, 1)), 8),
    'many tiles': (16, 1, 2, (23, 24), Options((0, 1), (0, 1)), 8),
}
SLOWEST = (
    *(('four', 'contiguous'), ('many clips', 'channels last'), ('tiles', 'channels last')),
    *(('many tiles', lies) for lies in ('contiguous', 'channels last')),
)


def case(name, lies, dtype):
    channels, clips, frames, positions, options, multiple = CASES[name]
    torch.manual_seed(sum(map(ord, name)))
    own = ChannelOptions(channels, 4, multiple)
    over = TemporalOptions(channels, 4)
    parameters = [*own.parameters(), *over.parameters()]
    for parameter in parameters:
        nn.init.uniform_(parameter, -1, 2)
    computed = kept(frames, 4)[options.temporal[0]]
    z = torch.randn(clips, own.kept[options.channel[0]], computed, *positions).to(dtype)
    z = from_memory_order(in_memory_order(z, lies).contiguous(), lies)
    share = Shares(*(torch.rand(clips, len(o)) if len(o) > 1 else None for o in options))
    gradient = torch.randn(clips, channels, frames, *positions).to(dtype)
    return (own, over), z, share, options, frames, gradient


def run(mixes, parts, z, share, options, frames, gradient, dtype, device):
    own, over = (part.to(device, dtype) for part in parts)
    z = z.detach().to(device, dtype).requires_grad_()
    share = Shares(*(None if v is None else v.to(device, dtype).requires_grad_() for v in share))
    y = mixes(z, share, options, own, over, frames)
    leaves = [z, *(v for v in share if v is not None), *own.parameters(), *over.parameters()]
    found = torch.autograd.grad(y, leaves, gradient.to(device, y.dtype), allow_unused=True)
    pairs = zip(leaves, found, strict=True)
    return [y, *(torch.zeros_like(leaf) if g is None else g for leaf, g in pairs)]


@pytest.mark.parametrize(
    ('name', 'lies'),
    [
        (name, lies)
        for number, name in enumerate(CASES)
        for lies in ('channels last', ('contiguous', 'frames')[number % 2])
        if (name, lies) not in SLOWEST
    ],
)
def test_mixes_alike(name, lies):
    from vared2_mmaction.executors.cuda.training import mix_by_kernels

    made = case(name, lies, torch.float32)
    exact = run(mix, *made, torch.float64, 'cpu')
    found = run(mix_by_kernels, *made, torch.float32, DEVICE)
    assert found[0].stride() == exact[0].stride()
    for a, b in zip(found, exact, strict=True):
        assert (a.cpu() - b).abs().max() <= 1e-5 * b.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize('lies', ['contiguous', 'channels last'])
def test_half_precision(lies):
    """Maps are rounded, factors and sums are not."""
    from vared2_mmaction.executors.cuda.training import mix_by_kernels

    parts, z, *rest = case('whole', lies, torch.bfloat16)
    exact = run(mix, parts, z, *rest, torch.float64, 'cpu')
    own, over = (part.to(DEVICE, torch.float32) for part in parts)
    share, options, frames, gradient = rest
    given = z.detach().to(DEVICE).requires_grad_()
    y = mix_by_kernels(given, Shares(*(v.to(DEVICE) for v in share)), options, own, over, frames)
    (of_z,) = torch.autograd.grad(y, given, gradient.to(DEVICE))
    assert y.dtype == of_z.dtype == torch.bfloat16
    for a, b in ((y, exact[0]), (of_z, exact[1])):
        assert (a.cpu() - b).abs().max() <= 2**-7 * b.abs().max()


@needs_gpu  # the interpreter takes one program after the other
def test_gradients_are_the_same_in_every_run():
    from vared2_mmaction.executors.cuda.training import mix_by_kernels

    made = case('tiles', 'contiguous', torch.float32)
    first, second = (run(mix_by_kernels, *made, torch.float32, DEVICE) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_compiled_graph_has_the_kernels():
    from vared2_mmaction.executors.cuda.training import mix_by_kernels

    made = case('one frame', 'contiguous', torch.float32)
    compiled = torch.compile(mix_by_kernels, backend='aot_eager', fullgraph=True)
    found = run(compiled, *made, torch.float32, DEVICE)
    for a, b in zip(found, run(mix_by_kernels, *made, torch.float32, DEVICE), strict=True):
        torch.testing.assert_close(a, b)


def test_no_clips():
    from vared2_mmaction.executors.cuda.training import mix_by_kernels

    parts, z, share, options, frames, gradient = case('odd', 'contiguous', torch.float32)
    none = z[:0], Shares(*(v[:0] for v in share)), options, frames, gradient[:0]
    found = run(mix_by_kernels, parts, *none, torch.float32, DEVICE)
    assert found[0].shape == (0, *gradient.shape[1:])
    assert not any(gradient.any() for gradient in found[1:])
