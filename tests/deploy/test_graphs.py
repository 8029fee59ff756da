# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What decides whether an optimised backbone is replayed, and how it is captured; without a GPU."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vared2_mmaction import optimize
from vared2_mmaction.deploy import graphs
from vared2_mmaction.deploy.graphs import Graphs

from ..compiling import needs_compiler
from ..models.backbones import SHORT, STOCK, dynamic
from ..models.comparing import randomise, relative


class Pretended(Graphs):
    """On a CPU; what is captured is counted, and called."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.captures = 0

    def serves(self, x):
        return True

    def _capture(self, x, forced):
        self.captures += 1
        replayed = SimpleNamespace(replay=lambda: None)
        return graphs._Graph(replayed, x.clone(), forced, self.run(x))


@needs_compiler
def test_a_network_that_was_moved_or_converted_is_captured_anew():
    net = dynamic('ResNet2Plus1d', **SHORT['ResNet2Plus1d'])
    randomise(net)
    net.eval()
    fast, x = optimize(net), torch.randn(STOCK['ResNet2Plus1d'][1])
    forward = Pretended(fast)
    with torch.no_grad():
        expected = fast(x)
        for _ in range(2):
            assert torch.equal(forward(x).features, expected.features)
        assert forward.captures == 1
        fast.to('cpu')  # executors are made anew, and what they held is gone
        assert torch.equal(forward(x).features, expected.features)
        assert forward.captures == 2
        fast.double()  # executed by PyTorch's operations, which ask the host
        assert relative(forward(x.double()).features, expected.features) < 1e-5
        assert forward.captures == 2


@pytest.mark.filterwarnings('ignore:CUDA is not available or torch_xla')
def test_captures_have_their_own_stream_and_cast_for_themselves(monkeypatch):
    seen, given = [], {}

    class Net(nn.Module):
        def forward(self, x):
            seen.append(torch.is_autocast_cache_enabled())
            return x

    @contextmanager
    def graph(captured, **arguments):
        given.update(arguments)
        yield

    side = SimpleNamespace(wait_stream=lambda other: None)
    for name, stand_in in {
        'graph': graph,
        'CUDAGraph': SimpleNamespace,
        'Stream': lambda device: side,
        'stream': lambda stream: nullcontext(),
        'current_stream': lambda device: side,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    before = torch.is_autocast_enabled('cuda')
    torch.set_autocast_enabled('cuda', True)
    try:
        assert torch.is_autocast_cache_enabled()
        with torch.no_grad(), graphs.uncached():
            Graphs(Net())._capture(torch.ones(1), ())
    finally:
        torch.set_autocast_enabled('cuda', before)
    assert given == {'stream': side, 'capture_error_mode': 'thread_local'}
    assert seen == [False] * 4
