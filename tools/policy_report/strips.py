# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""A few frames of a video side by side."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from mmengine.dataset import BaseDataset

from vared2_mmaction.datasets.pipelines import pipeline_steps

from .boxes import side_by_side


class Strip(NamedTuple):
    """Frames of a video, or why there are none."""

    image: np.ndarray | None
    """RGB, (H, W, 3), bytes."""
    problem: str = ''


class StripReader:
    """Reads strips by the means of a data set: its files, its decoder, its storage.

    Only the steps of the pipeline that open and decode are run, on evenly spaced frames; files of
    video and folders of frames are read alike.

    Args:
        dataset: A ``VideoDataset``, a ``RawframeDataset`` or one like them, in wrappers or not.
        frames: Frames of a strip; a shorter video shows all it has.
        height: Height of a strip in pixels.

    Raises:
        ValueError: If the pipeline has no step that decodes.
    """

    def __init__(self, dataset: BaseDataset, frames: int, height: int = 112) -> None:
        self.dataset, self.frames, self.height = dataset, frames, height
        steps = [(type(step).__name__, step) for step in pipeline_steps(dataset)]
        self.steps = [step for name, step in steps if name.endswith(('Init', 'Decode'))]
        if not any(name.endswith('Decode') for name, _ in steps):
            found = [name for name, _ in steps]
            raise ValueError(
                'test_dataloader.dataset.pipeline: expected a step that decodes frames, such as '
                f'DecordDecode or RawFrameDecode, found {found}'
            )

    def read(self, index: int) -> Strip:
        """Frames of a video of the data set; what cannot be shown has a ``problem``."""
        try:
            return Strip(self._draw(index))
        except Exception as error:  # a decoder may raise anything, and a picture less is no harm
            missing = isinstance(error.__cause__ or error, FileNotFoundError)
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            return Strip(None, 'missing on disk' if missing else f'cannot be read: {reason}')

    def _draw(self, index: int) -> np.ndarray:
        return side_by_side(self._decode(index), self.height)

    def _decode(self, index: int) -> Sequence[np.ndarray]:
        results = self.dataset.get_data_info(index)
        for step in self.steps:
            if type(step).__name__.endswith('Decode'):
                results['frame_inds'] = self._choose(results)
            results = step(results)
        return results['imgs']

    def _choose(self, results: dict[str, Any]) -> np.ndarray:
        """Numbers of the frames to show."""
        count = results['total_frames']
        shown = np.arange(min(self.frames, count))
        spaced = ((shown + 0.5) * count / len(shown)).astype(int)
        return spaced + results.get('start_index', 0)
