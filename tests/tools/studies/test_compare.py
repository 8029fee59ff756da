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
    assert result.share == pytest.approx((0.6, 0.52, 0.68))
    assert result.gmacs == pytest.approx((2.9, 2.58, 3.22))  # the overhead counts
    mmengine.dump([sample(0, [0.1, 0.9]), sample(1, [0.1, 0.9])], path)
    static = compare.summarise('static', path, 1.0, 4.0)
    assert static.top1 == 0.5
    assert static.gmacs == (4, 4, 4)
    assert static.share == (1, 1, 1)
    console = Console(width=80, record=True)
    console.print(compare.table([static, result], 'title'))
    printed = console.export_text()
    assert '2.5800 - 3.2200' in printed
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


def test_seeds_are_summed_up():
    static = [compare.Result('static', top1, (4, 4, 4), (1, 1, 1), 5.0) for top1 in (0.9, 0.8)]
    dynamic = [
        compare.Result('VA-RED2', top1, (2, 1, 3), (0.5, low, 0.7), 4.0)
        for top1, low in ((0.91, 0.4), (0.79, 0.3))
    ]
    console = Console(width=140, record=True)
    console.print(compare.over_seeds([3, 5], list(zip(static, dynamic, strict=True))))
    printed = console.export_text()
    for said in ('90.0', '85.0 ± 7.1', '+0.0 ± 1.4', '35.0 ± 7.1', '0.80 ± 0.00', '50.0 ± 0.0'):
        assert said in printed
