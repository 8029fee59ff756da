# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The comparison of the demo."""

import mmengine
import pytest
import torch
from rich.console import Console
from torch import nn

from studies import compare


def sample(label, scores, **compute):
    return {'gt_label': torch.tensor([label]), 'pred_score': torch.tensor(scores), **compute}


def test_summary_of_a_dump(tmp_path):
    path = str(tmp_path / 'dump.pkl')
    costs = [(0.5, 2.0), (0.7, 2.8)]
    mmengine.dump(
        [
            sample(1, [0.1, 0.9], compute_ratio=ratio, compute_gmacs=gmacs, overhead_gmacs=0.5)
            for ratio, gmacs in costs
        ],
        path,
    )
    result = compare.summarise('dynamic', path, 3.0, 4.0)
    assert result.top1 == 1
    assert result.share == pytest.approx((0.6, 0.5, 0.7))
    assert result.gmacs == pytest.approx((2.9, 2.5, 3.3))  # the overhead counts
    mmengine.dump([sample(0, [0.1, 0.9]), sample(1, [0.1, 0.9])], path)
    static = compare.summarise('static', path, 1.0, 4.0)
    assert static.top1 == 0.5
    assert static.gmacs == (4, 4, 4)
    assert static.share == (1, 1, 1)
    console = Console(width=80, record=True)
    console.print(compare.table([static, result], 'title'))
    printed = console.export_text()
    assert '2.5000 - 3.3000' in printed
    assert '60.0' in printed


def test_networks_take_turns_and_the_warm_up_does_not_count():
    calls = []

    class Network(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def data_preprocessor(self, batch, training):
            assert training is False
            return {'inputs': batch}

        def forward(self, inputs, mode):
            assert not torch.is_grad_enabled()
            calls.append((self.name, inputs))

    seconds = compare.time_alternately([Network('a'), Network('b')], [1, 2, 3], warmup=1)
    assert [len(times) for times in seconds] == [3, 3]
    assert calls == [(name, clip) for clip in (1, 1, 2, 3) for name in 'ab']
    assert compare.median_ms([0.001, 0.003, 0.002]) == pytest.approx(2)
