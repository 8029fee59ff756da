# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Decode small videos in the first epoch only."""

import copy
from typing import Any

from mmaction.registry import TRANSFORMS
from mmcv.transforms import BaseTransform, Compose

_OF_A_SAMPLE = (
    *('sample_idx', 'timestamp'),
    *('filename_tmpl', 'modality', 'start_index', 'offset', 'total_frames'),
)
"""Keys of what else tells samples apart: several may be of one video, with labels and times of
their own, or of one folder, with other frames of it."""


@TRANSFORMS.register_module()
class DecodeOnce(BaseTransform):
    """Apply the first transforms of a pipeline once a sample, and keep what they gave.

    For sets that fit into memory: each process that loads data keeps all it has seen, for as long
    as it lives (``persistent_workers=True``). What is random in these transforms is drawn once.

    Args:
        transforms: Configs of the transforms, up to those that are random.
    """

    def __init__(self, transforms: list[dict]) -> None:
        self.transforms = Compose(transforms)
        self._kept: dict[tuple, dict] = {}

    def transform(self, results: dict) -> dict[str, Any]:
        """Transform a sample of a video, a file ``filename`` or a folder of frames ``frame_dir``.

        Raises:
            ValueError: If it has neither.
        """
        if not (name := results.get('filename') or results.get('frame_dir')):
            raise ValueError(f'DecodeOnce: expected filename or frame_dir, found {sorted(results)}')
        sample = name, *(results.get(key) for key in _OF_A_SAMPLE)
        if sample not in self._kept:
            self._kept[sample] = self.transforms(results)
        return copy.deepcopy(self._kept[sample])  # Flip writes into what it is given
