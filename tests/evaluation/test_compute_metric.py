# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The compute metric."""

import pytest

from vared2_mmaction.evaluation import ComputeMetric

pytestmark = pytest.mark.fast


def test_statistics_over_videos():
    metric = ComputeMetric()
    ratios, gmacs = (0.5, 1.0, 0.75), (2.0, 4.0, 3.0)
    for ratio, cost in zip(ratios, gmacs, strict=True):
        sample = {'compute_ratio': ratio, 'compute_gmacs': cost, 'overhead_gmacs': 0.25}
        metric.process({}, [sample])
    result = metric.evaluate(size=3)
    assert result['compute/ratio'] == pytest.approx(0.75)
    assert result['compute/ratio_min'] == 0.5
    assert result['compute/ratio_max'] == 1.0
    assert result['compute/ratio_std'] == pytest.approx((0.125 / 3) ** 0.5)
    assert result['compute/gmacs'] == pytest.approx(3.0)
    assert result['compute/gmacs_max'] == 4.0
    assert result['compute/overhead_gmacs'] == 0.25


def test_samples_of_a_stock_head_are_refused():
    with pytest.raises(ValueError, match='compute_ratio is missing.*VARED2 head'):
        ComputeMetric().process({}, [{'pred_score': 1}])
