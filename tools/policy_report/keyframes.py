# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""A keyframe with its boxes, next to a few other frames of its clip."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset

from vared2_mmaction.datasets.pipelines import pipeline_steps

from .boxes import ANNOTATED, GAP, PREDICTED, WHITE, Box, describe, draw_boxes, side_by_side
from .strips import StripReader
from .videos import Videos

_MOST_BOXES = 6


class KeyframeReader(StripReader):
    """Reads strips of clips of action detection: the keyframe, twice as large as other frames.

    Annotated boxes have their actions above, predicted ones, at most six, their likeliest below.
    Frames are those that the network sees.

    Args:
        dataset: An ``AVADataset`` or one like it, whose pipeline has ``SampleAVAFrames``.
        frames: Frames of a strip, with the keyframe.
        videos: What is annotated and predicted, in the order of the data set.
        classes: Name of every class.
        height: Height of a strip in pixels.

    Raises:
        ValueError: If the pipeline has no step that samples, or none that decodes.
    """

    def __init__(
        self,
        dataset: BaseDataset,
        frames: int,
        videos: Videos,
        classes: Sequence[str],
        height: int = 240,
    ) -> None:
        super().__init__(dataset, frames, height)
        self.videos, self.classes = videos, classes
        steps = {type(step).__name__: step for step in pipeline_steps(dataset)}
        if 'SampleAVAFrames' not in steps:
            raise ValueError(
                'test_dataloader.dataset.pipeline: expected SampleAVAFrames, which says '
                f'what frames a clip has, found {list(steps)}'
            )
        self.sample = steps['SampleAVAFrames']

    def _draw(self, index: int) -> np.ndarray:
        keyframe, *others = self._decode(index)
        boxes = self._annotated(index) + self._predicted(index)
        return beside(draw_boxes(keyframe, boxes, self.height), others)

    def _choose(self, results: dict[str, Any]) -> np.ndarray:
        clip = self.sample(results)['frame_inds']
        # Where a clip is cut off by the end of the video, the keyframe still is in its middle.
        shown = np.linspace(0, len(clip) - 1, min(self.frames - 1, len(clip))).round().astype(int)
        return np.append(clip[len(clip) // 2], clip[shown])

    def _annotated(self, index: int) -> list[Box]:
        keyframe = self.videos.sources[index].keyframe
        assert keyframe is not None
        return [
            Box(corners, [self.classes[action] for action in actions], ANNOTATED)
            for corners, actions in zip(keyframe.boxes, keyframe.actions, strict=True)
        ]

    def _predicted(self, index: int) -> list[Box]:
        found = self.videos.detections[index]
        names, scores = self.classes[1:], found.scores[:, 1:]
        best = np.argsort(-scores.max(1), kind='stable')[:_MOST_BOXES]
        return [
            Box(found.boxes[i], describe(names, scores[i]), PREDICTED, low=True) for i in best[::-1]
        ]


def beside(large: np.ndarray, frames: Sequence[np.ndarray]) -> np.ndarray:
    """Put frames into two rows, to the right of a large one.

    Args:
        large: RGB, (H, W, 3), bytes.
        frames: As for :func:`~.boxes.side_by_side`, all of one size.

    Returns:
        RGB, (H, W, 3), bytes.
    """
    if not frames:
        return large
    middle = -(-len(frames) // 2)
    rows = [row for row in (frames[:middle], frames[middle:]) if row]
    canvas = np.full((len(large), GAP, 3), WHITE, np.uint8)
    tops = (0, len(large) - (len(large) - GAP) // 2)
    for row, top in zip(rows, tops, strict=False):
        drawn = side_by_side(row, (len(large) - GAP) // 2)
        missing = GAP + drawn.shape[1] - canvas.shape[1]
        canvas = np.pad(canvas, [(0, 0), (0, max(missing, 0)), (0, 0)], constant_values=WHITE)
        canvas[top : top + len(drawn), GAP : GAP + drawn.shape[1]] = drawn
    return np.concatenate([large, canvas], axis=1)
