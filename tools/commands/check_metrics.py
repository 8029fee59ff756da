# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Whether a network predicts what metrics need, before hours are spent until they ask for it."""

import inspect
from typing import Any

from mmaction.models.heads import BaseHead
from mmengine.config import Config

from vared2_mmaction.apis.check import class_of, has_gate_neck, innermost_head
from vared2_mmaction.datasets.pipelines import type_name
from vared2_mmaction.models.heads import BudgetHead

from .testing import metrics_of


def check_metrics(cfg: Config, split: str) -> None:
    """Check the metrics of a split, 'val' or 'test', against the model of a config.

    Raises:
        ValueError: If ComputeMetric is asked for a network without gates, or AccMetric for scores
            that a head does not average over views.
    """
    if not cfg.get(f'{split}_evaluator'):
        return
    names = [type_name(metric.get('type')) for metric in metrics_of(cfg, split)]
    model = cfg.model
    if 'ComputeMetric' in names and not has_gate_neck(model):
        raise ValueError(
            f'{split}_evaluator: ComputeMetric expects a dynamic network, with '
            f'neck=dict(type="SoftModulationGateNeck"), got neck={model.get("neck")!r}'
        )
    if 'AccMetric' in names and _keeps_views(model):
        raise ValueError(
            f"model.cls_head.average_clips=None: expected 'prob' or 'score', as {split}_evaluator "
            'has AccMetric, which takes one row of scores a video'
        )


def _keeps_views(model: dict) -> bool:
    """Whether a model's head hands on the scores of each view of a video."""
    head = innermost_head(model)
    found: Any = class_of(head, model.get('_scope_')) if head else None
    of_stock = inspect.isclass(found) and issubclass(found, BaseHead)
    if not of_stock or found.predict not in (BaseHead.predict, BudgetHead.predict):
        return False
    taken = (inspect.signature(owner).parameters for owner in found.__mro__)
    default = next(own['average_clips'].default for own in taken if 'average_clips' in own)
    return head.get('average_clips', default) is None
