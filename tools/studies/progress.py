# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""How far the study is: a live display in a terminal, lines in a log file."""

import time
from collections.abc import Collection, Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from typing_extensions import Self

from .study import Run

EVERY = 60.0
"""Seconds between two lines in a log file, where nothing begins or ends meanwhile."""


def remaining_seconds(
    unfinished: Collection[Run], elapsed: Mapping[Run, float], took: Mapping[Run, float], jobs: int
) -> float | None:
    """Estimate from the runs that are finished; None before the first one is.

    A run is expected to take as long as finished ones of its variant did on average, or as all did
    where there is none.

    Args:
        unfinished: Runs that are still to be finished, those that are running included.
        elapsed: Seconds since each running one began.
        took: Seconds that each finished one took.
        jobs: How many run side by side.
    """
    if not took:
        return None
    left = 0.0
    for run in unfinished:
        alike = [s for other, s in took.items() if other.variant == run.variant]
        alike = alike or list(took.values())
        left += max(sum(alike) / len(alike) - elapsed.get(run, 0.0), 0.0)
    return left / jobs


class StudyProgress:
    """Shows what is done, what is running, and how long it will still take.

    Args:
        console: Where to.
        total: Number of runs.
    """

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self.total = total
        self._shown = float('-inf')
        self._live = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn('{task.fields[note]}'),
            console=console,
            disable=not console.is_terminal,
        )
        self._all = self._live.add_task('runs', total=total, note='')
        self._tasks: dict[Run, TaskID] = {}

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def event(self, text: str) -> None:
        """Write a line that stays, with the time of day."""
        self.console.print(f'{time.strftime("%H:%M:%S")} {text}', highlight=False, soft_wrap=True)

    def update(
        self, done: int, running: Mapping[Run, tuple[int, int]], remaining: float | None
    ) -> None:
        """Show the state.

        Args:
            done: Number of finished runs.
            running: Epochs done, and epochs in all, of each running one.
            remaining: Seconds.
        """
        time_left = 'unknown' if remaining is None else f'{max(remaining / 60, 0):.0f} min'
        if not self.console.is_terminal:
            if time.monotonic() - self._shown >= EVERY:
                self._shown = time.monotonic()
                runs = ', '.join(f'{run} (epoch {a}/{b})' for run, (a, b) in running.items())
                self.event(f'{done}/{self.total} done, {time_left} left, running: {runs or "none"}')
            return
        self._live.update(self._all, completed=done, note=f'{time_left} left')
        for run in [run for run in self._tasks if run not in running]:
            self._live.remove_task(self._tasks.pop(run))
        for run, (epoch, epochs) in running.items():
            if run not in self._tasks:
                self._tasks[run] = self._live.add_task(str(run), total=epochs, note='epochs')
            self._live.update(self._tasks[run], completed=epoch)
