# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Blocks that compiled code executes one after the other make what their layers make."""

import pytest
import torch

from vared2_mmaction.executors.cpu.blocks import Block, execute

from ...compiling import needs_compiler
from ...ops.layers import Case
from ..layers import MANY, clips, executed, folded

pytestmark = needs_compiler

SIZES = {'kernel_size': (1, 3, 3), 'padding': (0, 1, 1), 'in_channels': MANY, 'out_channels': MANY}


def layers(number):
    """Layers whose output has the shape of their input."""
    made = [executed(folded(Case(f'layer {i}', SIZES, 6))) for i in range(number)]
    for layer in made:
        layer.forced = torch.tensor([[1, 1], [0, 2]])
    return made


def run(blocks, x):
    """Execute blocks; what is missing is planned first."""
    with torch.no_grad():
        for layer in {layer for block in blocks for layer in block.executed()}:
            layer(x)
        return execute(blocks, x)


def in_turn(blocks, x):
    """What layers make that are called."""
    with torch.no_grad():
        for block in blocks:
            y = added = x
            for layer in block.layers[:-1]:
                y = layer(y)
            for layer in block.beside:
                added = layer(added)
            x = block.layers[-1](y, added if block.adds else None)
    return x


@pytest.mark.parametrize('kind', ['one', 'two', 'beside', 'nothing added'])
def test_blocks(kind):
    """What a block adds is overwritten only if no layer reads it any more."""
    a, b, c, d = layers(4)
    blocks = {
        'one': [Block([a]), Block([b]), Block([c])],
        'two': [Block([a, b]), Block([c, d]), Block([d, a])],
        'beside': [Block([a, b], [c]), Block([d], [c, a]), Block([b])],
        'nothing added': [Block([a], adds=False), Block([b], [c], adds=False), Block([c, d])],
    }[kind]
    x = clips(Case('input', SIZES, 6), 2, height=60)  # of so many tiles that they read each other
    before = x.clone()
    found = run(blocks, x)
    assert found.blocks == len(blocks)
    assert len(found.charges) == sum(len(list(block.executed())) for block in blocks)
    assert torch.equal(found.y, in_turn(blocks, x))
    assert torch.equal(found.entered, found.y)
    assert torch.equal(x, before)


def test_what_is_given_is_added_and_kept():
    a, b = layers(2)
    x = clips(Case('input', SIZES, 6), 2)
    residual = torch.randn_like(x)
    before = residual.clone()
    with torch.no_grad():
        run([Block([a, b])], x)
        found = execute([Block([a]), Block([b])], x, residual)
        expected = a(x, residual)
        expected = b(expected, expected)
    assert torch.equal(found.y, expected)
    assert torch.equal(residual, before)


def test_where_it_stops_is_told():
    a, b, c = layers(3)
    x = clips(Case('input', SIZES, 6), 2)
    found = run([Block([a]), Block([b, c])], x)
    assert found.blocks == 2
    c.gate.fc2.bias[0] = torch.nan
    c.float()  # is told to the executor again
    c.forced = None
    with torch.no_grad():
        stopped = execute([Block([a]), Block([b, c])], x)
        entered = a(x, x)
        assert stopped.blocks == 1
        assert torch.equal(stopped.entered, entered)
        assert torch.equal(stopped.y, b(entered))
        assert len(stopped.charges) == 2
        with pytest.raises(FloatingPointError, match='not finite'):
            execute([Block([c])], x)
    assert execute([Block([a])], x).blocks == 0  # gradients may be asked for
