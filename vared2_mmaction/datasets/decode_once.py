# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Decode small videos in the first epoch only."""

import copy
from typing import Any

from mmaction.registry import TRANSFORMS
from mmcv.transforms import BaseTransform, Compose


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
        """Transform a sample of a video, named by the key ``filename``.

        Raises:
            KeyError: If there is no ``filename``.
        """
        # Several samples may be of one video, with labels and times of their own.
        sample = results['filename'], results.get('sample_idx'), results.get('timestamp')
        if sample not in self._kept:
            self._kept[sample] = self.transforms(results)
        return copy.deepcopy(self._kept[sample])  # Flip writes into what it is given
