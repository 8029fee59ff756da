# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""How much memory a call takes at most."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from vared2_mmaction.executors import ExecutedConv


def peak_bytes(
    call: Callable[[], object], device: torch.device, existing: Iterable[Tensor] = ()
) -> int:
    """Run a call once and take the peak of the memory of its tensors.

    On a GPU this is the peak of PyTorch's allocator, which counts whatever else lies there. On a
    CPU, where PyTorch keeps no such count, it is the peak of what the profiler saw the call
    allocate and free, and the existing tensors. What the call frees of those still counts, and
    what a library or a worker thread allocates for itself is not seen.

    Args:
        call: What to run.
        device: Where it runs.
        existing: Tensors that the call finds, such as those of :func:`state_tensors`; tensors
            that share memory count once. On a GPU they are counted anyway.

    Returns:
        Bytes.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    sizes = dict(map(_size, existing))
    return sum(sizes.values()) + _peak_of_events(_memory_events(call))


def state_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> Iterator[Tensor]:
    """What a model keeps between calls: parameters, buffers, what executors keep, gradients, state
    of the optimizer."""
    for parameter in model.parameters():
        yield parameter
        if parameter.grad is not None:
            yield parameter.grad
    yield from model.buffers()
    for module in model.modules():
        if isinstance(module, ExecutedConv):
            yield from module.tensors()
    for state in optimizer.state.values() if optimizer else ():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def _size(tensor: Tensor) -> tuple[int, int]:
    """What tells a tensor's memory from that of others, and its bytes."""
    if tensor.is_mkldnn:  # opaque
        return id(tensor), torch.ops.mkldnn._nbytes(tensor)
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _memory_events(call: Callable[[], object]) -> list[dict[str, Any]]:
    """Allocations and frees of a call on the CPU, in order.

    The trace is the one public place where the profiler tells them one by one.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'trace.json')
        seen.export_chrome_trace(path)
        with open(path) as file:
            events = json.load(file)['traceEvents']
    memory = [event for event in events if event.get('name') == '[memory]']
    return sorted(memory, key=lambda event: event['ts'])


def _peak_of_events(events: Iterable[dict[str, Any]]) -> int:
    blocks: dict[int, int] = {}  # by address, since earlier sessions left blocks of their own
    total = peak = 0
    for event in events:
        address, size = event['args']['Addr'], event['args']['Bytes']
        if size > 0:
            blocks[address] = size
            total += size
            peak = max(peak, total)
        else:
            total -= blocks.pop(address, 0)
    return peak
