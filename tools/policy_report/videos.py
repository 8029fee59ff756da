# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What a test found out about its videos, as columns; the only reader of data samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from annotations.ava_format import Keyframe
from vared2_mmaction.ops.options import MAX_OPTIONS

from .detections import Detections, found_share, read_detections
from .dump import as_array

COMPUTE = ('compute_ratio', 'compute_gmacs', 'overhead_gmacs')


class Source(NamedTuple):
    """A video of the data set: its file or folder of frames, and its labels.

    In action detection it is the clip around a keyframe.
    """

    name: str
    labels: tuple[int, ...]
    """Empty where the data set has none; in detection the actions of all boxes."""
    keyframe: Keyframe | None = None
    """What is annotated, in detection."""


class Measure(NamedTuple):
    """What is said of ``correct``: of all videos, of a category, above a figure, of a video where
    it is 1, and of one where it is less."""

    whole: str
    short: str
    title: str
    right: str
    wrong: str


RECOGNITION = Measure('top-1 accuracy', 'top-1', 'accuracy', 'correct', 'wrong')
_FOUND = 'actions found'
DETECTION = Measure(_FOUND, _FOUND, _FOUND, 'all found', 'some missed')


class _Answer(NamedTuple):
    classes: int
    predicted: int
    score: float
    correct: float


@dataclass(frozen=True)
class Videos:
    """The N videos of a test."""

    sources: Sequence[Source]
    num_classes: int
    predicted: np.ndarray
    """(N,), the class of the highest score; in detection, of any box."""
    score: np.ndarray
    """(N,), the score of that class."""
    correct: np.ndarray
    """(N,), 1 where that class is one of the labels, 0 where it is not, -1 without labels. In
    detection the share of annotated actions that are found, see
    :func:`~.detections.found_share`."""
    compute: np.ndarray
    """(N, 3): ``compute_ratio``, a share of the static backbone's multiply-adds in (0, 1], and
    ``compute_gmacs`` and ``overhead_gmacs``, billions of multiply-adds a view; means over views."""
    views: int
    """Views of all videos together."""
    chosen: np.ndarray
    """(layers, 2, MAX_OPTIONS): share of the views in which a layer chose a channel option (first)
    and a temporal option (second), dearest option first."""
    detections: Sequence[Detections] = ()
    """(N), what is predicted, in detection."""

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def ratio(self) -> np.ndarray:
        """(N,), the share of the static backbone's multiply-adds."""
        return self.compute[:, 0]

    @property
    def measure(self) -> Measure:
        """What ``correct`` says."""
        return DETECTION if self.detections else RECOGNITION


def read_videos(samples: Sequence[Mapping[str, Any]], sources: Sequence[Source]) -> Videos:
    """Bring the data samples of a test and the videos they are of together.

    Args:
        samples: Predictions, as :func:`~policy_report.dump.load_dump` gives them.
        sources: The videos of the data set, in the same order.

    Raises:
        ValueError: If the numbers of both differ, a sample is not that of a VARED2 head or is of
            another video; names the sample and the key.
    """
    if len(samples) != len(sources):
        raise ValueError(
            f'{len(samples)} predictions, but the data set has {len(sources)} videos: expected '
            'those of one test of this data set'
        )
    rows, policies, detections = [], [], []
    classes = layers = None
    for index, (sample, source) in enumerate(zip(samples, sources, strict=True)):
        where = f'sample {index} ({source.name!r})'
        _check_keys(sample, 'pred_score' if source.keyframe is None else 'pred_instances', where)
        if source.keyframe is None:
            answer = _recognized(sample, source, classes, where)
        else:
            detections.append(read_detections(sample, source.keyframe, classes, where))
            answer = _detected(detections[-1], source.keyframe)
        policy = _policy(sample, layers, where)
        classes, layers = answer.classes, policy.shape[1]
        policies.append(policy)
        rows.append((*answer[1:], *_compute(sample, where)))
    predicted, score, correct, *compute = np.array(rows, dtype=np.float64).T
    policy = np.concatenate(policies)
    chosen = np.stack([(policy == option).mean(0) for option in range(MAX_OPTIONS)], -1)
    return Videos(
        sources=sources,
        num_classes=classes or 0,
        predicted=predicted.astype(int),
        score=score,
        correct=correct if detections else correct.astype(int),
        compute=np.stack(compute, 1),
        views=len(policy),
        chosen=chosen,
        detections=detections,
    )


def _recognized(
    sample: Mapping[str, Any], source: Source, classes: int | None, where: str
) -> _Answer:
    scores = as_array(sample['pred_score'])
    classes = len(scores) if classes is None and scores.ndim == 1 else classes
    if scores.shape != (classes,) or not np.isfinite(scores).all():
        found = f'{scores.shape}' if np.isfinite(scores).all() else 'numbers that are not finite'
        raise ValueError(f'{where}: pred_score has {found}; expected ({classes or "classes"},)')
    _check_labels(sample, source, len(scores), where)
    best = int(scores.argmax())
    return _Answer(len(scores), best, scores[best], best in source.labels if source.labels else -1)


def _detected(found: Detections, keyframe: Keyframe) -> _Answer:
    best = found.scores[:, 1:].max(0, initial=0)  # class 0 is the background
    predicted = int(best.argmax()) + 1
    share = found_share(keyframe, found)
    return _Answer(found.scores.shape[1], predicted, best[predicted - 1], share)


def _check_keys(sample: Mapping[str, Any], answer: str, where: str) -> None:
    kind, heads = 'recognizer', 'VARED2TSNHead, VARED2I3DHead, VARED2X3DHead, VARED2Head'
    keys = [answer, 'gt_label']
    if answer == 'pred_instances':
        kind, heads = 'detector', 'VARED2AVARoIHead'
        keys = [answer, 'video_id', 'timestamp']
    for key in keys:
        if key not in sample:
            raise ValueError(f'{where} lacks {key!r}: expected the predictions of a {kind}')
    for key in ('policy', *COMPUTE):
        if key not in sample:
            raise ValueError(
                f'{where} lacks {key!r}: expected the predictions of a VARED2 head ({heads}), not '
                'of a stock one'
            )


def _check_labels(sample: Mapping[str, Any], source: Source, classes: int, where: str) -> None:
    """A dump does not name its videos; their labels tell most mistakes."""
    found = label_indices(sample['gt_label'], classes)
    if found != source.labels:
        raise ValueError(
            f'{where}: gt_label says {list(found)}, the data set {list(source.labels)}; expected '
            'the dump of a test of this data set, in its order'
        )
    if found and found[-1] >= classes:
        raise ValueError(f'{where}: label {found[-1]}, expected less than the {classes} classes')


def label_indices(label: Any, classes: int) -> tuple[int, ...]:
    """Labels of a video as class numbers, rising.

    Args:
        label: A class number, several, or a vector that is 1 for the classes of the video and 0 for
            all others; a negative number stands for no label.
        classes: Number of classes, which tells a vector from numbers.
    """
    values = as_array(label).reshape(-1)
    if len(values) == classes > 1 and np.isin(values, (0, 1)).all():
        values = np.flatnonzero(values)
    return tuple(sorted({int(value) for value in values if value >= 0}))


def _policy(sample: Mapping[str, Any], layers: int | None, where: str) -> np.ndarray:
    """Options, (views, layers, 2), as bytes: a test may have a hundred million of them."""
    policy = as_array(sample['policy'])
    fits = policy.ndim == 3 and policy.shape[2] == 2 and policy.size and policy.dtype.kind in 'iu'
    if not fits or layers not in (None, policy.shape[1]):
        found = f'{policy.dtype} of shape {policy.shape}'
        wanted = f'integers of shape (views, {"layers" if layers is None else layers}, 2)'
        raise ValueError(f'{where}: policy is {found}; expected {wanted}')
    if policy.min() < 0 or policy.max() >= MAX_OPTIONS:
        found = f'from {policy.min()} to {policy.max()}'
        raise ValueError(f'{where}: policy has options {found}; expected 0 to {MAX_OPTIONS - 1}')
    return policy.astype(np.int8)


def _compute(sample: Mapping[str, Any], where: str) -> list[float]:
    values = [float(sample[key]) for key in COMPUTE]
    for key, value in zip(COMPUTE, values, strict=True):
        # Up to the rounding of a mean over views.
        if not 0 <= value <= (1 + 1e-6 if key == 'compute_ratio' else np.inf):
            wanted = 'a share from 0 to 1' if key == 'compute_ratio' else 'a number, 0 or more'
            raise ValueError(f'{where}: {key} is {value}; expected {wanted}')
    return values
