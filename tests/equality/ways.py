# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Ways to execute a dynamic convolution, and what each has to answer."""

import copy
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from vared2_mmaction.executors import BACKENDS, ExecutedConv
from vared2_mmaction.executors.cpu.training import mix_compiled
from vared2_mmaction.executors.cuda import is_interpreted
from vared2_mmaction.ops import Modulation, Options, charge
from vared2_mmaction.ops.reference import reference

from ..compiling import needs_compiler
from ..ops.layers import Case, DynamicConv, as_output, build, case_of, clips, vary


def definition(layer: DynamicConv) -> Any:
    """The layer itself."""
    return layer


def compiled_mix(layer: DynamicConv) -> Any:
    """The layer, with options mixed by compiled code."""
    layer.mix = mix_compiled
    return layer


def mix_by_kernels(layer: DynamicConv) -> Any:
    """The layer, with options mixed by the kernels for GPUs, which are interpreted."""
    from vared2_mmaction.executors.cuda import training

    layer.mix = training.mix_by_kernels
    return layer


def executed(name: str, layer: DynamicConv) -> Any:
    """The module that takes its place in an optimised network."""
    module = ExecutedConv(layer)
    module.execute_by(name)
    return module


def _way(name: str, make: Callable[[DynamicConv], Any]) -> Any:
    if name in ('mix_compiled', 'cpu'):
        marks: Any = needs_compiler
    else:
        backend = BACKENDS.get(name)
        missing = backend is not None and not backend.is_available()
        marks = pytest.mark.skipif(missing, reason=f'the executor {name!r} is not available')
    return pytest.param(make, id=name, marks=marks)


TRAINED = [
    _way('definition', definition),
    _way('mix_compiled', compiled_mix),
]
"""Ways with gradients."""
WAYS = TRAINED + [_way(name, functools.partial(executed, name)) for name in ('eager', *BACKENDS)]


def is_slow(way: Any) -> bool:
    """Whether Triton's interpreter executes it, which takes a while."""
    kernels = way is mix_by_kernels or getattr(way, 'args', None) == ('cuda',)
    return kernels and is_interpreted()


def few(way: Any, of: Any, number: int = 2) -> Any:
    """The first of several, for slow ways."""
    return of[:number] if is_slow(way) else of


class Run(NamedTuple):
    """What a layer answers for N clips."""

    output: Tensor
    """(N, C, T, H, W)."""
    charges: Tensor
    """(N, 5), in float64."""


def run(case: Case, module: Any, x: Tensor, forced: Tensor | None = None) -> Run:
    """Execute a layer once.

    Args:
        case: The case of the layer.
        module: The layer, or what takes its place.
        x: Clips, (N, C, T, H, W), of any layout.
        forced: Options, (N or 1, 2), or None.
    """
    if case.rank == 2:
        frames = x.transpose(1, 2).flatten(0, 1)
        last = x.stride(1) == 1
        x = frames.contiguous(memory_format=torch.channels_last) if last else frames
    module.forced, module.decisions = forced, ()
    y = module(x)
    (decided,) = module.decisions
    module.decisions = module.forced = None
    charges = decided if isinstance(decided, Tensor) else charge([decided])[:, 0]
    return Run(as_output(case, y), charges)


@functools.cache
def network(name: str) -> tuple[DynamicConv, Tensor]:
    """Layer of a case whose gate answers each clip differently, and clips, in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(sum(map(ord, name)))
        layer = build(case_of(name), torch.float32)
        vary(layer)
        return layer, clips(case_of(name), 7, torch.float32)


def policies(name: str) -> Tensor:
    """All pairs of options in use, (pairs, 2); a short clip has fewer."""
    return torch.tensor(list(itertools.product(*network(name)[0].in_use)))


def expected(layer: DynamicConv, x: Tensor, forced: Tensor | None = None) -> Run:
    """What the layer has to answer, in the type of its input."""
    options = layer.options_of(x.shape[2])[0]
    weights = naive_weights(layer, x, options, forced)
    y = reference(layer, x, weights, options)
    return Run(y, naive_charges(layer, weights, options, y.shape))


@functools.cache
def expected_of(name: str, how: str) -> Run:
    """What the layer of a case has to answer in float64: to its gate, or to all policies."""
    layer, x = network(name)
    layer, x = copy.deepcopy(layer).double(), x.double()
    with torch.no_grad():
        if how == 'free':
            return expected(layer, x)
        forced = policies(name)
        return expected(layer, x[:1].expand(len(forced), -1, -1, -1, -1), forced)


def naive_weights(
    layer: DynamicConv, x: Tensor, options: Options, forced: Tensor | None
) -> Modulation:
    """Weights of the options in use, clip by clip."""
    number = min(layer.temporal_options.num_options, layer.output_frames(x.shape[2]).bit_length())
    weights = []
    for d, (v, which) in enumerate(zip(layer.gate(x, number), options, strict=True)):
        rows = []
        for n, row in enumerate(v):
            chosen = [row[i] for i in which]
            if not any(w > 0 for w in chosen):
                chosen[-1] = row.max()
            if forced is not None:
                option = min(int(forced[n % len(forced), d]), which[-1])
                chosen = [row.new_tensor(float(i == option)) for i in which]
            rows.append(torch.stack(chosen))
        weights.append(torch.stack(rows))
    return Modulation(*weights)


def naive_charges(layer: DynamicConv, weights: Modulation, options: Options, shape: Any) -> Tensor:
    """Multiply-adds of each clip, counted by hand."""
    _, channels, frames, *area = shape
    area = area[0] * area[1]
    kernel = layer.weight[0].numel()
    kept = layer.channel_options.kept
    rows = []
    for v_c, v_t in zip(*weights, strict=True):
        on_c = [i for i, w in zip(options.channel, v_c, strict=True) if w > 0]
        on_t = [j for j, w in zip(options.temporal, v_t, strict=True) if w > 0]
        computed = len(range(0, frames, 2 ** on_t[0]))
        overhead = layer.gate.macs() if max(map(len, options)) > 1 else 0  # asked or not
        for i in on_c:
            overhead += (channels - kept[i]) * computed * area
        for j in on_t:
            rebuilt = frames - len(range(0, frames, 2**j))
            overhead += channels * rebuilt * area
        unit = kernel * area
        rows.append(
            [unit * kept[on_c[0]] * computed, unit * channels * frames, overhead, on_c[0], on_t[0]]
        )
    return torch.tensor(rows, dtype=torch.float64)
