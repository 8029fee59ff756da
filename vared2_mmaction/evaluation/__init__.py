# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Metrics."""

from .compute_metric import ComputeMetric

__all__ = ['ComputeMetric']
