# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Do all runs of the study, several at a time, and go on where it was interrupted."""

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from commands.steps import epochs_of
from synthetic.moving_shapes import MovingShapes, make_moving_shapes

from . import compare, match
from .progress import StudyProgress, remaining_seconds
from .run import RESULT, TASK, last_checkpoint, locked, write_json
from .study import DYNAMIC, STATIC, VARIANTS, Run, Study, set_data, set_width

RESULTS = 'results.json'
LOG = 'run.log'
STALE = ('error', 'retrain', 'keep')
_POLL = 0.5
_TOOLS = Path(__file__).resolve().parents[1]


class StaleResultError(ValueError):
    """A folder holds the result of other settings."""


class RunFailedError(RuntimeError):
    """The process of a run failed."""


@dataclass(frozen=True)
class Resources:
    """What the runs may take.

    Attributes:
        jobs: Runs side by side.
        threads: Threads of each.
        workers: Processes of each that decode videos.

    Raises:
        ValueError: An argument is out of range; the message names it as the command line does.
    """

    jobs: int = 2
    threads: int = 1
    workers: int = 1

    def __post_init__(self) -> None:
        for name, least in (('jobs', 1), ('threads', 1), ('workers', 0)):
            if (number := getattr(self, name)) < least:
                raise ValueError(f'--{name}: expected at least {least}, got {number}')


@dataclass
class Scheduler:
    """Does the runs of a study.

    Args:
        study: What to do.
        out: Where everything is written; a folder for each run.
        data: Folder of the video set, which is made where it is missing.
        resources: What the runs may take.
        stale: What to do about results of other settings: 'error', 'retrain', or 'keep' those of
            finished runs.
        console: Where progress is shown.
        command: The command that does the same, for the report.
    """

    study: Study
    out: Path
    data: Path
    resources: Resources = Resources()
    stale: str = 'error'
    console: Console = field(default_factory=Console)
    command: str = ''

    def __post_init__(self) -> None:
        if self.stale not in STALE:
            raise ValueError(f'--stale: expected one of {STALE}, got {self.stale!r}')
        self.results: dict[Run, dict[str, Any]] = {}
        self.processes: dict[Run, tuple[subprocess.Popen, float]] = {}

    def run(self) -> dict[Run, dict[str, Any]]:
        """Do what is not done yet, and write ``results.json``.

        Returns:
            The result of every run.

        Raises:
            StaleResultError: If a folder holds the result of other settings.
            RunFailedError: If a run fails; the others are stopped, and go on the next time.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with _locked(self.out):
            if isinstance(self.study.videos, MovingShapes):
                make_moving_shapes(
                    self.data, self.study.videos, self.resources.jobs, self.console.is_terminal
                )
            waiting = self.study.runs()
            with StudyProgress(self.console, len(waiting)) as progress:
                try:
                    while waiting or self.processes:
                        self._start_what_can(waiting, progress)
                        self._collect(progress)
                        self._show(waiting, progress)
                        if self.processes:
                            time.sleep(_POLL)
                finally:
                    for process, _ in self.processes.values():
                        process.kill()
                        process.wait()
            ordered = {run: self.results[run] for run in self.study.runs()}
            write_results(self.out / RESULTS, ordered, self.command)
        return ordered

    def folder(self, run: Run) -> Path:
        """Folder of a run."""
        return self.out / str(run)

    def prepare(self, run: Run) -> bool:
        """Write the task of a run whose needs are finished.

        Returns:
            Whether it has to be done; if not, its result is taken.

        Raises:
            StaleResultError: See :meth:`run`.
        """
        folder, result = self.folder(run), self.folder(run) / RESULT
        equal_compute = self._equal_compute(run)
        base = VARIANTS[run.variant].base
        start = Run(STATIC, run.seed) if base == DYNAMIC else None
        cfg = self.study.config(run, equal_compute)
        weights = None if start is None else self.results[start]['weights']
        settings = self.study.settings(run, cfg, weights)
        there = read_settings(folder)
        if (
            there is not None
            and there != settings
            and not (self.stale == 'keep' and result.is_file())
        ):
            if self.stale == 'error':
                raise StaleResultError(_difference(folder, there, settings))
            shutil.rmtree(folder)
        if result.is_file():
            self.results[run] = json.loads(result.read_text())
            return False
        folder.mkdir(exist_ok=True)
        set_data(cfg, str(self.data), self.resources.workers)
        cfg.work_dir = str(folder)
        if start is not None:
            of_start = self.folder(start)
            cfg.load_from = str(of_start / f'epoch_{epochs_of(of_start / "config.py")}.pth')
        cfg.dump(folder / 'config.py')
        task = {'threads': self.resources.threads, 'data': str(self.data), 'settings': settings}
        write_json(folder / TASK, {**task, 'adapts': run.variant == DYNAMIC})
        return True

    def _start_what_can(self, waiting: list[Run], progress: StudyProgress) -> None:
        for run in list(waiting):
            if len(self.processes) >= self.resources.jobs:
                return
            if run.needs is not None and run.needs not in self.results:
                continue
            waiting.remove(run)
            if not self.prepare(run):
                progress.event(f'{run}: is done already')
                continue
            last = last_checkpoint(self.folder(run))
            goes_on = '' if last is None else f', goes on from {last.name}'
            progress.event(f'{run}: starts{goes_on}, see {self.folder(run) / LOG}')
            self.processes[run] = self._start(run), time.monotonic()

    def _start(self, run: Run) -> subprocess.Popen:
        threads = str(self.resources.threads)
        # Threads that wait actively take the cores from the processes that decode videos.
        given = {'OMP_NUM_THREADS': threads, 'OMP_WAIT_POLICY': 'PASSIVE'}
        paths = [str(_TOOLS), *filter(None, [os.environ.get('PYTHONPATH')])]
        given['PYTHONPATH'] = os.pathsep.join(paths)
        with open(self.folder(run) / LOG, 'a') as log:
            return subprocess.Popen(
                [sys.executable, '-m', 'studies.run', str(self.folder(run)), '--with-stdin'],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **given},
            )

    def _collect(self, progress: StudyProgress) -> None:
        for run, (process, _) in list(self.processes.items()):
            if process.poll() is None:
                continue
            del self.processes[run]
            result = self.folder(run) / RESULT
            if process.returncode or not result.is_file():
                log = self.folder(run) / LOG
                tail = '\n'.join(log.read_text(errors='replace').splitlines()[-15:])
                raise RunFailedError(f'{run}: exit status {process.returncode}, see {log}:\n{tail}')
            self.results[run] = found = json.loads(result.read_text())
            progress.event(
                f'{run}: top-1 {100 * found["top1"]:.1f} %, share of the compute '
                f'{100 * found["ratio"]["mean"]:.1f} %, {found["seconds"]:.0f} s'
            )

    def _show(self, waiting: list[Run], progress: StudyProgress) -> None:
        now = time.monotonic()
        running = {run: self._epochs(run) for run in self.processes}
        elapsed = {run: now - begin for run, (_, begin) in self.processes.items()}
        took = {run: r['seconds'] for run, r in self.results.items() if not r['resumed']}
        left = remaining_seconds([*waiting, *running], elapsed, took, self.resources.jobs)
        progress.update(len(self.results), running, left)

    def _epochs(self, run: Run) -> tuple[int, int]:
        """Epochs that a run has done, and epochs in all."""
        settings = read_settings(self.folder(run)) or {}
        written = [path.stem.partition('_')[2] for path in self.folder(run).glob('epoch_*.pth')]
        return max(map(int, written), default=0), settings['config.train_cfg.max_epochs']

    def _equal_compute(self, run: Run) -> Any:
        kind = VARIANTS[run.variant].equal_compute
        if kind is None:
            return None
        taken = self.results[Run(DYNAMIC, run.seed)]
        shape = self._clip_shape
        if kind in ('thrift', 'options'):
            cfg = self.study.config(Run(DYNAMIC, run.seed))
            costs = match.layer_costs(match.backbone_of(cfg), shape)
            if kind == 'options':
                return match.options_for(costs, **taken['training'])
            return match.thrift_for(costs, taken['ratio']['mean'])
        static = self.study.config(Run(STATIC, run.seed))
        widest = 2 * static.model.backbone.base_channels

        def cost(width: int) -> float:
            set_width(static, width)
            return match.cost_of(static, shape)

        target = 1e9 * (taken['gmacs']['mean'] + taken['overhead_gmacs'])
        return match.width_for(cost, target, widest)

    @functools.cached_property
    def _clip_shape(self) -> tuple[int, ...]:
        cfg = self.study.config(Run(STATIC, self.study.seeds[0]))
        set_data(cfg, str(self.data), 0)
        match.init_scope(cfg)
        _, *shape = compare.decoded_videos(cfg, 1)[0]['inputs'][0].shape
        return tuple(shape)


def write_results(path: Path, results: Mapping[Run, Mapping[str, Any]], command: str) -> None:
    """Write the results of all runs into one file, settings that are the same for all once."""
    settings = [dict(result['settings']) for result in results.values()]
    common = {
        key: value
        for key, value in settings[0].items()
        if all(key in other and other[key] == value for other in settings)
    }
    runs = {}
    for run, result in results.items():
        own = {k: v for k, v in result['settings'].items() if k not in common}
        runs[str(run)] = {'variant': run.variant, 'seed': run.seed, **result, 'settings': own}
    write_json(path, {'command': command, 'settings': common, 'runs': runs})


def read_settings(folder: Path) -> dict[str, Any] | None:
    """The settings that a folder's result, or its unfinished training, was made with.

    Raises:
        StaleResultError: If the folder holds something else.
    """
    for path in (folder / RESULT, folder / TASK):
        if path.is_file():
            try:
                return json.loads(path.read_text())['settings']
            except (ValueError, KeyError, TypeError) as error:
                raise StaleResultError(f'{path}: expected JSON with "settings": {error}') from error
    return None


def _difference(folder: Path, there: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    keys = [
        key for key in sorted({*there, *settings}) if there.get(key, '-') != settings.get(key, '-')
    ]
    shown = ', '.join(
        f'{key}={there.get(key, "nothing")!r} (now {settings.get(key, "nothing")!r})'
        for key in keys[:3]
    )
    return (
        f'{folder} was made with {len(keys)} other settings: {shown}. Choose another --out, '
        'or --stale retrain, or --stale keep to take what is finished as it is'
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder, so that no second study writes into it."""
    try:
        with locked(folder, wait=False):
            yield
    except BlockingIOError as error:
        raise ValueError(f'--out: another study is at work in {folder}') from error
