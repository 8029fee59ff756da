# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Boxes of people, whose actions a detector then scores."""

import os

import numpy as np
from mmengine.registry import init_default_scope

from vared2_mmaction.apis.clips import open_video, read_frame
from vared2_mmaction.apis.config_file import first_line
from vared2_mmaction.apis.inference import choose_device
from vared2_mmaction.apis.weights import check_checkpoint
from vared2_mmaction.installation import DETECTION_MISSING, has_detection

_LEAST_SCORE = 0.9  # as in MMAction2's demo


def find_people(
    config: str,
    checkpoint: str,
    video: str | os.PathLike,
    timestamp: float | None = None,
    device: str | None = None,
) -> np.ndarray:
    """Find people in a frame by a detector of mmdet.

    Args:
        config: Path of the detector's config; class 0 is people, as in COCO.
        checkpoint: Path or URL of its checkpoint.
        video: Path of the video.
        timestamp: Of the frame, seconds; None takes the middle of the video.
        device: As for :func:`~vared2_mmaction.apis.load_detector`.

    Returns:
        x1, y1, x2, y2 in pixels, (boxes, 4), of people with a score above 0.9, at least one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the detector fails, finds nobody, or mmdet is not installed.
    """
    if not has_detection():
        raise ValueError(f'DETECTOR={config!r}: {DETECTION_MISSING}')
    if not os.path.isfile(config):
        raise FileNotFoundError(f'DETECTOR={config!r}: no such file')
    check_checkpoint(checkpoint)
    opened = open_video(video)
    frame = np.ascontiguousarray(read_frame(opened, opened.frame_at(timestamp))[..., ::-1])
    device = choose_device(device)
    try:
        from mmdet.apis import inference_detector, init_detector

        # MMAction2's detection_inference would print a progress bar.
        found = inference_detector(init_detector(config, checkpoint, device=device), frame)
    except Exception as error:  # what the classes of a config raise
        raise ValueError(f'DETECTOR={config!r} fails: {first_line(error)}') from error
    finally:
        init_default_scope('mmaction')  # mmdet made its own the default
    people = found.pred_instances.cpu().numpy()
    boxes = people.bboxes[(people.labels == 0) & (people.scores > _LEAST_SCORE)]
    boxes = boxes.clip(0, opened.size)
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
    if not len(boxes):
        raise ValueError(f'DETECTOR={config!r} finds nobody with a score above {_LEAST_SCORE}')
    return boxes
