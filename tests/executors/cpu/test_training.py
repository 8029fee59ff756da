# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Mixing in C++ with gradients is the definition's, and is left to it where it cannot be."""

import pytest
import torch

from vared2_mmaction.executors.cpu import training
from vared2_mmaction.executors.cpu.training import mix_compiled
from vared2_mmaction.ops import Modulation, Options
from vared2_mmaction.ops.mixing import mix
from vared2_mmaction.ops.options import WHOLE

from ...compiling import needs_compiler
from ...ops.layers import CASES, build, every_modulation
from ..layers import clips

pytestmark = needs_compiler


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
def test_outputs_and_gradients_are_those_of_the_definition(case):
    layer = build(case, torch.float32)
    x = clips(case, 3)
    options = layer.options_of(x.shape[2])[0]
    fewer = Options(options.channel[-1:], options.temporal[-1:])
    for which in (options, fewer):
        for modulation in every_modulation(layer, x):
            pairs = zip(modulation, which, strict=True)
            weights = [v[:, -len(on) :].float().clamp(min=0.1) for v, on in pairs]
            found = []
            for layer.mix in (mix, mix_compiled):
                layer.zero_grad()
                v, inputs = (
                    [w.clone().requires_grad_() for w in weights],
                    x.clone().requires_grad_(),
                )
                y = layer.modulate(inputs, Modulation(*v), which)
                torch.manual_seed(1)
                y.backward(torch.randn(y.shape))  # not channels-last
                own = [p.grad for n, p in layer.named_parameters() if not n.startswith('gate.')]
                found.append([y.detach(), inputs.grad, *(w.grad for w in v), *own])
            for a, b in zip(*found, strict=True):
                if a is None or b is None:  # of what is not used
                    assert a is None or a.abs().max() <= 1e-5
                    assert b is None or b.abs().max() <= 1e-5
                else:
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_compiled_where_it_can_be(monkeypatch):
    calls = []
    monkeypatch.setattr(training, 'mix', lambda *args: calls.append(args) or mix(*args))
    layer = build(CASES[0], torch.float32)
    layer.mix, x = mix_compiled, clips(CASES[0], 2)
    layer(x)
    assert calls == []
    layer(x.contiguous())
    layer.double()(x.double())
    assert len(calls) == 2  # another layout, another type


def test_what_is_computed_alone_is_not_mixed():
    layer, x = build(CASES[0], torch.float32), clips(CASES[0], 2)
    layer.mix = None
    whole = layer.modulate(x, Modulation(torch.ones(2, 1), torch.ones(2, 1)), WHOLE)
    assert torch.equal(whole, layer.convolve(x))
