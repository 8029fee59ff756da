# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What the time of a network goes into, operation by operation."""

import time
from collections.abc import Callable, Mapping

from torch.profiler import ProfilerActivity, profile

CONVOLUTIONS = (
    'mkldnn::_convolution_pointwise',
    'aten::mkldnn_convolution',
    'vared2::convolve_tiles',
)
"""Operations that convolve; the last also writes what is made from the result."""


def operation_times(call: Callable[[], object], runs: int) -> dict[str, float]:
    """Milliseconds that a call spends in each operation of PyTorch, on the CPU.

    Args:
        call: What is profiled, warm.
        runs: How often it is called; times are means.

    Returns:
        Times of the operations, what they call left out, longest first; ``total`` is that of the
        call, profiler included. What is no operation, Python and other compiled code of this
        project, is the rest.
    """
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        for _ in range(runs):
            call()
        total = time.perf_counter() - start
    times = {e.key: e.self_cpu_time_total / 1e3 / runs for e in profiler.key_averages()}
    ordered = dict(sorted(times.items(), key=lambda item: -item[1]))
    return {'total': 1e3 * total / runs, **ordered}


def convolution_time(times: Mapping[str, float]) -> float:
    """Milliseconds in convolutions, of what :func:`operation_times` found."""
    return sum(times.get(name, 0.0) for name in CONVOLUTIONS)
