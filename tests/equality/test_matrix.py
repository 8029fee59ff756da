# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Every way to execute a dynamic convolution answers what the reference does: outputs, policies and
charges, and gradients where there are any.

Cases are those of tests/ops/layers.py: shapes, strides, groups, odd channels, one frame, in 2-D and
3-D, with all options in use and with fewer.
"""

import copy

import pytest
import torch

from vared2_mmaction.executors.cuda import is_interpreted

from ..ops.layers import NAMES, case_of
from .ways import (
    TRAINED,
    WAYS,
    expected,
    expected_of,
    few,
    is_slow,
    mix_by_kernels,
    network,
    policies,
    run,
)

every_way = pytest.mark.parametrize('way', WAYS)
every_case = pytest.mark.parametrize('name', NAMES)
LAYOUTS = (torch.channels_last_3d, torch.contiguous_format)


def close(found, wanted, tolerance=1e-4):
    """Whether tensors are the same up to rounding, seen from the largest number."""
    wanted = wanted.to(found.dtype)
    return (found - wanted).abs().max() <= tolerance * wanted.abs().max() + 1e-6


def prepared(name, way):
    layer, x = network(name)
    return case_of(name), way(copy.deepcopy(layer)), x


@pytest.mark.fast
@every_case
@every_way
@torch.no_grad()
def test_a_mixed_batch(name, way):
    case, module, x = prepared(name, way)
    output, charges = expected_of(name, 'free')
    x, output, charges = (few(way, of) for of in (x, output, charges))
    for layout in few(way, LAYOUTS, 1):  # tests/executors/cuda has kernels of other layouts
        given = x.contiguous(memory_format=layout)
        found = run(case, module, given)
        assert close(found.output, output)
        assert torch.equal(found.charges, charges)
        assert torch.equal(given, x)  # nothing is overwritten


@every_case
@every_way
@torch.no_grad()
def test_a_clip_alone_is_the_clip_in_the_batch(name, way):
    case, module, x = prepared(name, way)
    output, charges = expected_of(name, 'free')
    for n in few(way, (2, 5), 1):
        alone = x[n, None].contiguous(memory_format=torch.channels_last_3d)
        found = run(case, module, alone)
        assert close(found.output, output[n, None])
        assert torch.equal(found.charges, charges[n, None])


@every_case
@every_way
@torch.no_grad()
def test_every_policy_in_use(name, way):
    case, module, x = prepared(name, way)
    forced = policies(name)
    output, charges = expected_of(name, 'forced')
    if is_slow(way):  # every option of both dimensions is in some of these
        channel, temporal = map(len, network(name)[0].in_use)
        some = [i % channel * temporal + -i % temporal for i in range(max(channel, temporal))]
        forced, output, charges = forced[some], output[some], charges[some]
    same = x[:1].expand(len(forced), -1, -1, -1, -1)
    same = same.contiguous(memory_format=torch.channels_last_3d)
    found = run(case, module, same, forced)
    assert close(found.output, output)
    assert torch.equal(found.charges, charges)
    found = run(case, module, same[:2], forced[-1:])  # one for all clips
    assert close(found.output, output[-1:].expand_as(found.output))
    assert torch.equal(found.charges, charges[-1:].expand_as(found.charges))
    with pytest.raises(ValueError, match='expected a batch of 3 clips, got 2'):
        run(case, module, x[:2], forced[:1].repeat(3, 1))


@pytest.mark.parametrize('name', ['plain', 'vectors', '2d', 'in use: outer ones'])
@every_way
@torch.no_grad()
def test_one_clip_that_is_not_finite(name, way):
    """Another clip never sees it, and nobody takes it for finite."""
    case, module, x = prepared(name, way)
    output, _ = expected_of(name, 'free')
    bad = few(way, x).clone()
    bad[1] = float('nan')
    try:
        found = run(case, module, bad)
    except FloatingPointError as error:
        assert str(error).startswith(f'{name}: ')  # noqa: PT017
        return
    assert not found.output[1].isfinite().any()
    others = [n for n in range(len(bad)) if n != 1]
    assert close(found.output[others], output[others])


@every_case
@pytest.mark.parametrize('way', TRAINED)
@pytest.mark.parametrize('forced', [False, True], ids=['free', 'forced'])
def test_gradients(name, way, forced):
    check_gradients(name, way, forced)


@pytest.mark.skipif(not is_interpreted(), reason="needs Triton's interpreter, which takes a while")
@pytest.mark.parametrize('name', ['2d', 'in use: outer ones'])
def test_gradients_by_kernels(name):
    """tests/executors/cuda has kernels that mix options on their own, on a GPU as well."""
    check_gradients(name, mix_by_kernels, forced=False)


def check_gradients(name, way, forced):
    case, module, x = prepared(name, way)
    x = few(way, x)
    choice = policies(name)[torch.arange(len(x)) % len(policies(name))] if forced else None
    twin = copy.deepcopy(module).double()
    wanted, given = x.double().requires_grad_(), x.clone().requires_grad_()
    output, _ = expected(twin, wanted, choice)
    weights = torch.randn_like(output)
    (output * weights).sum().backward()
    (run(case, module, given, choice).output * weights.float()).sum().backward()
    assert close(given.grad, wanted.grad)
    exact = {key: p.grad for key, p in twin.named_parameters() if p.grad is not None}
    noise = 1e-5 * max(gradient.abs().max() for gradient in exact.values())
    for key, parameter in module.named_parameters():
        found, gradient = parameter.grad, exact.get(key)
        found = torch.zeros_like(parameter) if found is None else found
        gradient = torch.zeros_like(found) if gradient is None else gradient
        limit = 1e-3 * gradient.abs().max() + noise
        assert ((found - gradient).abs() <= limit).all(), key


@pytest.mark.parametrize(
    'name', ['spatial', 'temporal', 'vectors', 'four options', '2d', 'in use: 2d']
)
@every_way
def test_who_executes(name, way):
    """A matrix in which the definition stood in for an executor would show nothing."""
    _, module, _ = prepared(name, way)
    if hasattr(module, 'execute_by'):
        assert module.executed_by == way.args[0]
