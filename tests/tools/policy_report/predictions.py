# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Data samples as a test dumps them, and the videos they are of."""

import numpy as np
import torch

from annotations.ava_format import Keyframe
from policy_report.videos import Source, read_videos

HOSTILE = '</script><script>document.title="owned"</script>&"\'$x_{$ \u2028'


def sample(label, scores, ratio, policy=((0, 0), (1, 2)), views=1, **changes):
    """A prediction of one video; label is a number or several."""
    labels = torch.tensor(label).reshape(-1)
    return {
        **{'gt_label': labels, 'pred_score': torch.tensor(scores)},
        **{'compute_ratio': ratio, 'compute_gmacs': 10 * ratio, 'overhead_gmacs': 0.1},
        'policy': torch.tensor(policy).expand(views, -1, -1),
        **changes,
    }


def videos(rows, names=None):
    """Videos of rows (label or labels, predicted class, compute ratio); three classes."""
    samples, sources = [], []
    for index, (label, predicted, ratio) in enumerate(rows):
        scores = [0.1, 0.1, 0.1]
        scores[predicted] = 0.8
        samples.append(sample(label, scores, ratio))
        labels = (label,) if isinstance(label, int) else tuple(label)
        name = names[index] if names else f'folder/video{index}.mp4'
        sources.append(Source(name, tuple(one for one in labels if one >= 0)))
    return read_videos(samples, sources)


def detection(video, timestamp, boxes, scores, ratio):
    """A prediction of the clip around a keyframe; scores are those of all classes for each box."""
    kept = {key: value for key, value in sample(0, [1.0], ratio).items() if 'compute' in key}
    return {
        **{**kept, 'overhead_gmacs': 0.1, 'policy': torch.tensor([[[0, 0], [1, 2]]])},
        **{'video_id': video, 'timestamp': timestamp},
        'pred_instances': {'bboxes': torch.tensor(boxes), 'scores': torch.tensor(scores)},
    }


LEFT, RIGHT = (0.0, 0.0, 0.4, 1.0), (0.6, 0.0, 1.0, 1.0)
KEYFRAME = Keyframe('a.mp4', 7, np.array([LEFT, RIGHT]), [(1, 3), (2,)])
SOURCES = [
    Source('a.mp4 @ 7', (1, 2, 3), KEYFRAME),
    Source('a.mp4 @ 8', (2,), Keyframe('a.mp4', 8, np.array([LEFT]), [(2,)])),
]
"""Two keyframes of detection."""
SCORES = [[0.9, 0.2, 0.1, 0.4], [0, 0.2, 0.3, 0.1]]


def detections():
    """Predictions for the two keyframes: all actions of the first are found, none of the second."""
    return [
        detection('a.mp4', 7, [LEFT, RIGHT], SCORES, 0.5),
        detection('a.mp4', 8, [RIGHT], SCORES[:1], 0.75),
    ]
