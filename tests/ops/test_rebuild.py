# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Rebuilding in one pass, and clips that are taken apart and put together."""

import pytest
import torch

from vared2_mmaction.ops.forms import layout
from vared2_mmaction.ops.groups import Group, assemble, consecutive, divide
from vared2_mmaction.ops.rebuild import rebuild


def tables(stride, channels, computed):
    scale, shift = torch.randn(2, stride, channels, dtype=torch.float64)
    scale[0, :computed], shift[0, :computed] = 1, 0
    return scale.requires_grad_(), shift.requires_grad_()


@pytest.mark.parametrize('channels_last', [True, False])
@pytest.mark.parametrize(
    ('channels', 'computed', 'frames', 'stride'),
    [(8, 4, 8, 2), (7, 4, 5, 2), (7, 2, 5, 4), (8, 8, 3, 1), (4, 4, 4, 4), (9, 5, 1, 1)],
)
def test_rebuilt_maps_and_gradients(channels, computed, frames, stride, channels_last):
    z = torch.randn(2, computed, -(-frames // stride), 3, 2, dtype=torch.float64)
    if channels_last:
        z = z.to(memory_format=torch.channels_last_3d)
    z.requires_grad_()
    scale, shift = tables(stride, channels, computed)
    y = rebuild(z, scale, shift, frames)
    expected = torch.stack(
        [
            torch.stack(
                [
                    scale[t % stride, c] * z[:, c % computed, t // stride] + shift[t % stride, c]
                    for t in range(frames)
                ],
                1,
            )
            for c in range(channels)
        ],
        1,
    )
    torch.testing.assert_close(y, expected)
    assert torch.equal(y[:, :computed, ::stride], z)  # what is computed, to the last bit
    assert layout(y) == layout(z)
    given, inputs = torch.randn_like(y), (z, scale, shift)
    found = torch.autograd.grad(y, inputs, given)
    exact = torch.autograd.grad(expected, inputs, given)
    torch.testing.assert_close(found[0], exact[0])
    rebuilt = torch.ones(stride, channels, dtype=torch.float64)
    rebuilt[0, :computed] = 0  # a constant
    for a, b in zip(found[1:], exact[1:], strict=True):
        torch.testing.assert_close(a, b * rebuilt)


@pytest.mark.parametrize('grad', [True, False])
@pytest.mark.parametrize('in_runs', [True, False])
def test_groups_are_taken_apart_and_put_together(grad, in_runs):
    x = torch.randn(6, 2, 3, 2, 2).to(memory_format=torch.channels_last_3d)
    groups = [Group([0, 3, 4], [0], [0]), Group([1], [1], [0]), Group([2, 5], [0], [1])]
    if in_runs:
        groups = consecutive(groups)
        assert [g.rows for g in groups] == [[0], [1], [2], [3, 4], [5]]
        assert [g.channel for g in groups] == [[0], [1], [0], [0], [0]]
    x.requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        rows = [group.rows for group in groups]
        y = assemble(divide(x, rows), rows)
    assert torch.equal(y, x)
    assert layout(y) == 'channels last'
    if grad:
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
        assert torch.equal(gradient, 2 * x)
        assert layout(gradient) == 'channels last'
        rows = [[1, 2], [4], [0, 3, 5]]  # an order that is not its own inverse
        scaled = assemble([p * (i + 1) for i, p in enumerate(divide(x, rows))], rows)
        (gradient,) = torch.autograd.grad(scaled.sum(), x)
        for i, group in enumerate(rows):  # each clip gets the gradient of its own group
            assert (gradient[group] == i + 1).all()
