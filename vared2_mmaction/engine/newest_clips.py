# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The newest training clips, by which gates are brought to a budget."""

from collections import deque
from collections.abc import Iterator
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..budget.observe import observable
from ..errors import COUNT, check
from ..models import dynamic_layers
from .network import EPOCH, budget_of, check_begin, network_of


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
        batches = self._batches
        batches.append(batch)
        while len(batches) > epoch or len(self) - len(batches[0]['inputs']) >= self.clips:
            batches.popleft()

    def suffice(self, epoch: int) -> bool:
        """Whether they are as many as are needed, or all that there are."""
        return len(self) >= self.clips or len(self._batches) >= epoch

    def __len__(self) -> int:
        return sum(len(batch['inputs']) for batch in self._batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


class SettlingHook(Hook):
    """Base of the hooks that settle gates at the budget by the newest training clips; arguments
    are described there."""

    def __init__(self, begin: float, clips: int = 128) -> None:
        check(f'{type(self).__name__}: begin', begin, EPOCH)
        check(f'{type(self).__name__}: clips', clips, COUNT)
        self.begin = begin
        self.clips = clips

    def before_train(self, runner: Runner) -> None:
        """Find layers and budget.

        Raises:
            ValueError: If there is no dynamic layer, gates cannot be brought to the budget, or
                training ends before ``begin``.
        """
        check_begin(self, runner)
        model = network_of(runner)
        self._layers = dynamic_layers(model)
        if not self._layers:
            raise ValueError(f'{type(self).__name__}: the model has no dynamic layer')
        # As configured: BudgetScheduleHook changes budgets later.
        self._budget: Any = budget_of(model)
        if self._budget is not None:
            observable(model)
        self._newest = NewestClips(self.clips)
