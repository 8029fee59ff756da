# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Detect the actions in boxes of one video, and see what every layer decided.

MMAction2 has no inferencer of action detection. A clip is made by the config's own test pipeline.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from torch import Tensor, nn

from ..datasets.pipelines import type_name
from .clips import Video, check_box, open_video
from .config_file import first_line
from .inference import (
    Computation,
    choose_device,
    dynamic_backbone,
    load_and_tell,
    read_config,
    run,
    what_it_took,
)
from .labels import read_actions
from .optimizing import optimize_and_log
from .weights import check_checkpoint, load_model


@dataclass(frozen=True)
class Detector:
    """A dynamic network of action detection, and what makes clips for it."""

    model: nn.Module
    pipeline: Compose
    classes: Sequence[str]
    """Names of the classes; the first is the background."""


@dataclass(frozen=True)
class Detection(Computation):
    """What a detector answered for the clip around a moment of a video, and what that took."""

    video: Video
    frame: int
    """Number of the frame in the middle of the clip."""
    boxes: np.ndarray
    """(boxes, 4): x1, y1, x2, y2 in pixels of the video, in the order given."""
    labels: tuple[tuple[str, ...], ...]
    """For each box all actions, best first."""
    scores: tuple[tuple[float, ...], ...]
    """Their scores."""


def load_detector(
    config: str | os.PathLike,
    checkpoint: str | os.PathLike,
    device: str | None = None,
    label_file: str | None = None,
    optimized: bool = True,
) -> Detector:
    """A dynamic network of action detection, for video files.

    Arguments and errors are those of :func:`~vared2_mmaction.apis.load_inferencer`, but that
    ``label_file`` has names of actions, see :func:`~vared2_mmaction.apis.labels.read_actions`, and
    None takes that of the config, if there is such a file; and a ValueError says if mmdet is
    missing, which detection needs.
    """
    config = os.fspath(config)
    cfg = read_config(config)
    if 'roi_head' not in cfg.model:
        kind = cfg.model.type
        raise ValueError(f'CONFIG={config!r}: model.type={kind!r}, expected a detector, FastRCNN')
    classes = _read_names(cfg, label_file)
    check_checkpoint(checkpoint)
    device = choose_device(device)
    try:
        model, _ = load_model(cfg)
        dynamic_backbone(model)
        pipeline = _build_pipeline(cfg)
    except Exception as error:  # what the classes of a config raise
        raise ValueError(f'CONFIG={config!r}: {first_line(error)}') from error
    load_and_tell(model, checkpoint)
    model.to(device).eval()
    return Detector(optimize_and_log(model) if optimized else model, pipeline, classes)


def detect(
    detector: Detector,
    video: str | os.PathLike,
    boxes: Sequence[Sequence[float]] | np.ndarray | None = None,
    timestamp: float | None = None,
) -> Detection:
    """Score the actions in boxes of one video.

    A clip has as many frames, as far apart, as the config says, whatever the video's frame rate.

    Args:
        detector: What :func:`load_detector` gives.
        video: Path of the video.
        boxes: x1, y1, x2, y2 in pixels of the frame in the middle of the clip, (boxes, 4), at
            least one; None takes the whole frame.
        timestamp: Middle of the clip, seconds; None takes that of the video.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be decoded, a box or the time is outside of it, or the network
            cannot take its clips.

    Examples:
        >>> from vared2_mmaction.apis import detect, load_detector
        >>> detector = load_detector('config.py', 'checkpoint.pth')
        >>> detect(detector, 'video.mp4', [(0, 0, 100, 200)]).labels[0][0]
    """
    backbone = dynamic_backbone(detector.model)
    opened = open_video(video)
    frame = opened.frame_at(timestamp)
    boxes = [(0, 0, opened.width, opened.height)] if boxes is None else boxes
    if not len(boxes):
        raise ValueError('boxes: expected at least one, x1, y1, x2, y2 in pixels')
    for number, box in enumerate(boxes):
        check_box(box, f'boxes[{number}]', opened)
    boxes = np.array(boxes, dtype=np.float64)
    batch = _make_clip(detector.pipeline, opened, frame, boxes)
    with torch.no_grad():
        sample = run(detector.model.test_step, batch, opened.path)  # type: ignore[arg-type]
    scores, order = sample.pred_instances.scores[:, 1:].cpu().sort(descending=True, stable=True)
    return Detection(
        video=opened,
        frame=frame,
        boxes=boxes,
        labels=tuple(tuple(detector.classes[i + 1] for i in row) for row in order.tolist()),
        scores=tuple(tuple(row) for row in scores.tolist()),
        frames=batch['inputs'][0].permute(1, 2, 3, 0)[None],
        **what_it_took(sample, backbone),
    )


def _read_names(cfg: Config, label_file: str | None) -> list[str]:
    dataset = cfg.test_dataloader.dataset
    if label_file is None and os.path.isfile(dataset.get('label_file') or ''):
        label_file = dataset.label_file
    number = (cfg.model.roi_head.get('bbox_head') or {}).get('num_classes', 81)  # AVA's
    return read_actions(label_file, number, dataset.get('custom_classes'))


def _build_pipeline(cfg: Config) -> Compose:
    """The test pipeline, decoding with decord."""
    steps: list[dict] = [{'type': 'DecordInit'}]
    for step in cfg.test_dataloader.dataset.pipeline:
        if (kind := type_name(step['type'])).endswith('Decode'):
            steps.append({'type': 'DecordDecode'})
        elif not kind.endswith('Init'):
            steps.append(step)
    found = [type_name(step['type']) for step in steps]
    for wanted in ('SampleAVAFrames', 'DecordDecode', 'PackActionInputs'):
        if wanted not in found:
            raise ValueError(f'test_dataloader.dataset.pipeline: expected {wanted}, found {found}')
    return Compose(steps)


def _make_clip(pipeline: Compose, video: Video, frame: int, boxes: np.ndarray) -> dict[str, Any]:
    """A batch of one clip."""
    shares = boxes / video.size
    name = os.path.basename(video.path)
    results = {
        'filename': video.path,
        'video_id': name,
        'img_key': f'{name},{frame:04d}',
        'modality': 'RGB',
        'start_index': 0,
        # The step that samples knows whole seconds only; here they are frames.
        'fps': 1,
        'timestamp': frame,
        'timestamp_start': 0,
        'proposals': shares,
        # Without an annotation, proposals do not get packed.
        'gt_bboxes': shares,
        'gt_labels': np.zeros(len(shares)),
    }
    try:
        batch = pseudo_collate([pipeline(results)])
    except Exception as error:  # the steps are the config's
        what = f'VIDEO={video.path!r}: the test pipeline fails'
        raise ValueError(f'{what}: {first_line(error)}') from error
    inputs: Tensor = batch['inputs'][0]
    if inputs.dim() != 4 or len(inputs) != 3 or inputs.dtype != torch.uint8:
        raise ValueError(
            f'the test pipeline gives {inputs.dtype} of shape {tuple(inputs.shape)}: expected RGB '
            'frames, uint8 of shape (3, T, H, W)'
        )
    return batch
