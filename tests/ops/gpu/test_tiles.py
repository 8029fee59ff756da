# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The fastest of several kernels is found by measurement, once."""

import math

import pytest
import torch

from vared2_mmaction.ops.gpu import OLDEST

pytest.importorskip('triton', minversion=OLDEST)

from vared2_mmaction.ops.gpu import tiles
from vared2_mmaction.ops.gpu.tiles import fastest

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')


@pytest.fixture(autouse=True)
def _nothing_chosen(monkeypatch):
    monkeypatch.setattr(tiles, '_chosen', {})


def failing():
    raise RuntimeError('out of registers')


@needs_gpu
def test_the_fastest_is_measured_once():
    small, large = (torch.randn(n, n, device='cuda') for n in (64, 2048))
    asked = []

    def candidates():
        asked.append(None)
        return [
            [lambda: large @ large],
            [failing],
            [lambda: small @ small],
            [lambda: large @ large],
        ]

    assert [fastest('key', candidates) for _ in range(2)] == [2, 2]
    assert len(asked) == 1


@needs_gpu
def test_no_kernel_that_runs_is_an_error():
    with pytest.raises(RuntimeError, match='no kernel for this convolution .* out of registers'):
        fastest('key', lambda: [[failing]])


def test_times_of_a_candidate_add_up(monkeypatch):
    times = {'a': 1.0, 'b': 5.0, 'c': 2.0, 'd': 3.0, 'e': math.inf}
    monkeypatch.setattr(tiles, 'INTERPRETED', False)
    monkeypatch.setattr(tiles, '_time', lambda call, graphs, failures: times[call])
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: False)
    assert fastest('key', lambda: [['a', 'b'], ['c', 'd'], ['a', 'e']]) == 1
    assert fastest('key', failing) == 1


def test_nothing_is_measured_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(tiles, 'INTERPRETED', False)
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: True)
    assert fastest('key', failing) == 0
