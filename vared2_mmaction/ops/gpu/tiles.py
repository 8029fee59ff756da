# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""How a convolution is cut into tiles: what is fastest for its shapes, by measurement."""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

from .launch import INTERPRETED


class Tile(NamedTuple):
    """Sizes of a tile, and how it is executed."""

    sizes: tuple[int, int, int]
    """Positions, output channels, and input channels at a time."""
    warps: int = 4
    stages: int = 3
    """Loads that are under way."""
    registers: int | None = 168
    """Of a thread, at most."""
    resident: int = 3
    """Programs that a multiprocessor holds."""

    @property
    def options(self) -> dict[str, Any]:
        """What a kernel is compiled with."""
        options: dict[str, Any] = {'num_warps': self.warps, 'num_stages': self.stages}
        if torch.version.hip is None:  # AMD's compiler has no such option
            options['maxnreg'] = self.registers
        return options


_HALF = (
    Tile((64, 64, 64), registers=128, resident=4),
    Tile((64, 32, 64), stages=4, registers=128, resident=4),
    Tile((128, 64, 64)),
    Tile((128, 128, 64), 8, 3, 128, 2),
)
_SINGLE = (
    Tile((64, 64, 32), registers=128, resident=4),
    Tile((64, 32, 32), stages=4, registers=128, resident=4),
    Tile((128, 64, 32)),
    Tile((128, 128, 32), 8, 3, 128, 2),
)
_INTERPRETED = (Tile((512, 64, 32), registers=None),)
BLENDING = Tile((512 if INTERPRETED else 32, 64, 1), registers=None, resident=2)
_CALLS = 3
_chosen: dict[Hashable, int] = {}


def tiles(dtype: torch.dtype) -> Sequence[Tile]:
    """Tiles to choose from for maps of a type."""
    if INTERPRETED:
        return _INTERPRETED
    return _SINGLE if dtype == torch.float32 else _HALF


def programs(x: Tensor, tile: Tile, most: int) -> int:
    """Programs to launch, which share all tiles.

    Args:
        x: A tensor on the device.
        tile: The tile.
        most: Tiles that there can be.
    """
    if INTERPRETED:
        return min(2, most)
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    return min(most, tile.resident * processors)


def fastest(key: Hashable, candidates: Callable[[], Sequence[Sequence[Callable[[], Any]]]]) -> int:
    """Measure once which of some candidates is fastest.

    Args:
        key: What the choice depends on.
        candidates: Makes the calls of each, the sum of whose times counts. One that fails is out
            of the race.

    Returns:
        Its number. Where nothing can be measured, while a CUDA graph is being captured or kernels
        are interpreted, the first.

    Raises:
        RuntimeError: If all fail.
    """
    if key in _chosen:
        return _chosen[key]
    if INTERPRETED or torch.cuda.is_current_stream_capturing():
        return 0
    failures: list[Exception] = []
    graphs: list[torch.cuda.CUDAGraph] = []  # one after the other in the same memory
    times = [sum(_time(call, graphs, failures) for call in calls) for calls in candidates()]
    graphs.clear()
    torch.cuda.empty_cache()
    if min(times) == math.inf:
        raise RuntimeError(f'no kernel for this convolution runs on this GPU: {failures[-1]}')
    _chosen[key] = times.index(min(times))
    return _chosen[key]


def _time(
    call: Callable[[], Any], graphs: list[torch.cuda.CUDAGraph], failures: list[Exception]
) -> float:
    """Milliseconds that a few calls take on the device, one after the other; infinity if one fails.

    They are replayed as a graph, since the host is slower than a small kernel. ``torch.cuda.graph``
    hands all memory back besides, which takes longer than the rest.
    """
    graph = torch.cuda.CUDAGraph()
    memory: dict[str, Any] = {'pool': graphs[0].pool()} if graphs else {}
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    try:
        call()  # kernels are loaded, libraries choose theirs
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            graph.capture_begin(**memory)
            try:
                for _ in range(_CALLS):
                    call()
            finally:
                graph.capture_end()
            graphs.append(graph)
            graph.replay()
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
    except (RuntimeError, OutOfResources, CompilationError) as error:
        failures.append(error)
        return math.inf
    return start.elapsed_time(end)
