# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Peak memory: exact on calls whose memory is known."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarking.memory import peak_bytes, state_tensors
from vared2_mmaction import optimize

CPU = torch.device('cpu')
MB = 1_000_000


def allocate(megabytes):
    return torch.empty(megabytes * MB, dtype=torch.uint8)


def free_between():
    small = allocate(10)
    del small
    return allocate(20)


def keep_both():
    return allocate(10), allocate(20)


def free_last():
    big = allocate(20)
    del big
    return allocate(10), allocate(5)


@pytest.mark.parametrize(
    ('call', 'megabytes'), [(free_between, 20), (keep_both, 30), (free_last, 20), (list, 0)]
)
def test_peak_of_known_allocations(call, megabytes):
    for _ in range(2):  # what an earlier measurement left behind does not count
        assert peak_bytes(call, CPU) == megabytes * MB


def test_memory_that_is_there_counts_once():
    there = allocate(7)
    assert peak_bytes(free_between, CPU, [there, there[:3], allocate(1)]) == 28 * MB


def test_a_block_of_an_earlier_call_is_not_freed_from_this_one():
    kept = []
    peak_bytes(lambda: kept.append(allocate(30)), CPU)

    def release():
        kept.clear()
        return allocate(10)

    assert peak_bytes(release, CPU) == 10 * MB


def test_state_of_a_model_and_its_optimizer():
    model = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20))
    weights, statistics = 10 * 20 + 20 + 2 * 20, 2 * 20

    def state():
        return sum(tensor.numel() for tensor in state_tensors(model, optimizer))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    assert state() == weights + statistics + 1  # and the counter of batches
    model(torch.ones(4, 10)).sum().backward()
    assert state() == 2 * weights + statistics + 1
    optimizer.step()
    assert state() == 3 * weights + statistics + 1
    optimizer.zero_grad(set_to_none=True)
    assert state() == 2 * weights + statistics + 1


def test_a_convolution_needs_more_memory_in_training():
    conv = nn.Conv2d(8, 16, 3)
    x = torch.randn(4, 8, 66, 66)
    output = 4 * 16 * 64 * 64 * 4

    def predict():
        with torch.no_grad():
            conv(x)

    def train():
        F.relu(conv(x)).square().sum().backward()

    there = [*state_tensors(conv), x]
    known = sum(4 * tensor.numel() for tensor in there)
    inference, training = peak_bytes(predict, CPU, there), peak_bytes(train, CPU, there)
    assert inference >= known + output
    assert training >= inference + output  # the output is kept, and has a gradient
    assert training < known + 10 * output


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_peak_on_a_gpu():
    device = torch.device('cuda')
    there = torch.cuda.memory_allocated()

    def call():
        small = torch.empty(10 * 2**20, dtype=torch.uint8, device=device)
        del small
        torch.empty(20 * 2**20, dtype=torch.uint8, device=device)

    assert peak_bytes(call, device) == there + 20 * 2**20


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason='needs oneDNN')
@pytest.mark.parametrize('in_3d', [False, True])
def test_packed_kernels_are_state(in_3d):
    conv = nn.Conv2d(16, 32, 3, padding=1, bias=False)
    x = torch.randn(1, 16, 8, 8).to(memory_format=torch.channels_last)
    if in_3d:
        conv = nn.Conv3d(16, 32, (1, 3, 3), padding=(0, 1, 1), bias=False)
        x = torch.randn(1, 16, 4, 8, 8).to(memory_format=torch.channels_last_3d)
    fast = optimize(nn.Sequential(conv), executor='eager')
    before = peak_bytes(list, CPU, state_tensors(fast))
    with torch.no_grad():
        fast(x)
    assert peak_bytes(list, CPU, state_tensors(fast)) == 2 * before
