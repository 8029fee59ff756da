# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The newest training clips, by which gates are brought to a budget."""

from collections import deque
from collections.abc import Iterator
from typing import Any


class NewestClips:
    """Keeps batches in memory, and of older ones no more than are needed, or than an epoch has.

    Args:
        clips: How many clips of this process are needed.
    """

    def __init__(self, clips: int) -> None:
        self.clips = clips
        self._batches: deque[Any] = deque()

    def keep(self, batch: Any, epoch: int) -> None:
        """Keep a batch; ``epoch`` is the number of batches of an epoch."""
        self._batches.append(batch)
        older = len(self) - len(self._batches[0]['inputs'])
        while older >= self.clips or len(self._batches) > epoch:
            self._batches.popleft()
            older = len(self) - len(self._batches[0]['inputs'])

    def suffice(self, epoch: int) -> bool:
        """Whether they are as many as are needed, or all that there are."""
        return len(self) >= self.clips or len(self._batches) >= epoch

    def __len__(self) -> int:
        return sum(len(batch['inputs']) for batch in self._batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)
