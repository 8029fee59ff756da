# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""How much compute a data set took."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmaction.registry import METRICS
from mmengine.evaluator import BaseMetric


@METRICS.register_module()
class ComputeMetric(BaseMetric):
    """Compute of a dynamic network: mean, min, max and standard deviation over videos.

    ``compute/ratio`` is the share of the static backbone's multiply-adds, ``compute/gmacs`` the
    billions of multiply-adds a view; ``compute/overhead_gmacs`` are those of gates and cheap
    operations, which come on top.

    Arguments are those of MMEngine's ``BaseMetric``.
    """

    default_prefix = 'compute'

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the compute of a batch of videos.

        Raises:
            ValueError: If a data sample carries none, because its head is a stock one.
        """
        for sample in data_samples:
            if 'compute_ratio' not in sample:
                raise ValueError(
                    'compute_ratio is missing from the data samples: ComputeMetric expects the '
                    'predictions of a VARED2 head'
                )
            self.results.append(
                (sample['compute_ratio'], sample['compute_gmacs'], sample['overhead_gmacs'])
            )

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Summarise the videos."""
        ratio, gmacs, overhead = np.asarray(results, dtype=np.float64).T
        metrics = {}
        for name, values in (('ratio', ratio), ('gmacs', gmacs)):
            metrics[name] = float(values.mean())
            for statistic in ('min', 'max', 'std'):
                metrics[f'{name}_{statistic}'] = float(getattr(values, statistic)())
        metrics['overhead_gmacs'] = float(overhead.mean())
        return metrics
