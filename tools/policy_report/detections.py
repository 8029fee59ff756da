# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What a test of action detection predicted, and how much of the annotation that meets."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from mmaction.evaluation.functional.ava_evaluation import np_box_ops

from annotations.ava_format import Keyframe

from .dump import as_array

OVERLAP = 0.5
"""Intersection over union from which on a predicted box is that of the annotation."""


class Detections(NamedTuple):
    """The predicted boxes of a keyframe."""

    boxes: np.ndarray
    """(boxes, 4): x1, y1, x2, y2 as shares of width and height."""
    scores: np.ndarray
    """(boxes, classes); class 0 is the background."""


def read_detections(
    sample: Mapping[str, Any], keyframe: Keyframe, classes: int | None, where: str
) -> Detections:
    """Read a data sample of a detector.

    Args:
        sample: What was predicted; has ``video_id``, ``timestamp`` and ``pred_instances``.
        keyframe: What is annotated.
        classes: Number of classes, if it is known.
        where: Name of the sample, for errors.

    Raises:
        ValueError: If the sample is of another keyframe, or boxes or scores are none.
    """
    key = f'{sample["video_id"]},{int(sample["timestamp"]):04d}'
    if key != keyframe.key:
        raise ValueError(
            f'{where}: the prediction is of {key!r}; expected the dump of a test of this data set, '
            'in its order'
        )
    instances = sample['pred_instances']
    for name in ('bboxes', 'scores'):
        if name not in instances:
            raise ValueError(f'{where}: pred_instances lacks {name!r}: expected boxes and scores')
    boxes, scores = (as_array(instances[name]) for name in ('bboxes', 'scores'))
    if classes is None and scores.ndim == 2:
        classes = scores.shape[1]
    if boxes.shape[1:] != (4,) or scores.shape != (*boxes.shape[:1], classes):
        raise ValueError(
            f'{where}: pred_instances has boxes of shape {boxes.shape} and scores of shape '
            f'{scores.shape}; expected (boxes, 4) and (boxes, {classes or "classes"})'
        )
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError(f'{where}: pred_instances has numbers that are not finite')
    highest = max(map(max, keyframe.actions))
    if highest >= scores.shape[1]:
        raise ValueError(
            f'{where}: action {highest} is annotated, expected less than the {scores.shape[1]} '
            'classes of the prediction'
        )
    return Detections(boxes, scores)


def found_share(keyframe: Keyframe, found: Detections) -> float:
    """Share of the annotated actions that are found, in [0, 1].

    For an annotated box with k actions the predicted box counts that overlaps it most, if their
    intersection over union is ``OVERLAP`` or more, and of that the k actions of the highest scores.
    With one box and one action this is top-1. No threshold of scores is needed; predicted boxes
    beyond those of the annotation cost nothing.

    Args:
        keyframe: What is annotated; at least one box, each with at least one action.
        found: What is predicted.
    """
    hits = 0
    if len(found.boxes):
        overlaps = np_box_ops.iou(keyframe.boxes, found.boxes)
        for actions, overlap in zip(keyframe.actions, overlaps, strict=True):
            if overlap.max() >= OVERLAP:
                scores = found.scores[overlap.argmax(), 1:]
                likeliest = np.argsort(-scores, kind='stable')[: len(actions)] + 1
                hits += len(set(likeliest.tolist()) & set(actions))
    return hits / sum(map(len, keyframe.actions))
