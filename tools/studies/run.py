# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""One run of the study, in a process of its own: train, test, write down the result.

``python -m studies.run FOLDER``, with ``tools`` on the path, does what ``FOLDER/run.json`` says,
and goes on from the last checkpoint in the folder. With ``--with-stdin`` it ends when its standard
input does, as it happens when the study that holds the other end is killed.
"""

import argparse
import copy
import datetime
import fcntl
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.fileio import put
from mmengine.runner.checkpoint import _load_checkpoint
from torch import Tensor

from benchmarking.environment import processor, versions
from commands import cli
from commands.check_data import check_run
from commands.testing import metrics_of
from controls.measure import measure_controls
from policy_report.dump import load_dump
from vared2_mmaction.checkpoints.loading import whole_networks
from vared2_mmaction.checkpoints.resuming import newest_checkpoint
from vared2_mmaction.models import static_cost

from . import compare
from .budgets import measure_budgets
from .fixed import usage_in_training
from .footage import test_facts
from .motion import motion_statistics

TASK, RESULT, VIDEOS = 'run.json', 'result.json', 'videos.json'


def main() -> None:
    parser = argparse.ArgumentParser(description='One run of the study')
    parser.add_argument('folder', type=Path, help='of the run, with run.json and config.py')
    parser.add_argument('--with-stdin', action='store_true', help='end when standard input does')
    args = parser.parse_args()
    folder = args.folder
    if args.with_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    with locked(folder):
        task = json.loads((folder / TASK).read_text())
        torch.set_num_threads(task['threads'])
        run(folder, task)


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold a folder, so that no other process writes into it.

    Args:
        folder: The folder.
        wait: Whether to wait for a process that holds it.

    Raises:
        BlockingIOError: If another process holds the folder, without ``wait``.
    """
    with open(folder / 'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def run(folder: Path, task: Mapping[str, Any]) -> None:
    """Train and test.

    Args:
        folder: Of the run, with ``config.py``.
        task: 'threads', 'settings' and 'data', the folder of the video set; with 'adapts' also
            what training clips are given is found out, and what the network does at other budgets.
    """
    begin = time.perf_counter()
    cfg = Config.fromfile(folder / 'config.py')
    checkpoint = folder / f'epoch_{cfg.train_cfg.max_epochs}.pth'
    last = last_checkpoint(folder, 'current')
    if last != checkpoint:
        training = copy.deepcopy(cfg)
        if last is not None:
            training.resume, training.load_from = True, str(last)
        check_run(training, 'train', 'test')
        cli.build_runner(training).train()
    dump = folder / 'test.pkl'
    testing = copy.deepcopy(cfg)
    testing.load_from = str(checkpoint)
    testing.test_evaluator = [*metrics_of(cfg), {'type': 'DumpResults', 'out_file_path': str(dump)}]
    with whole_networks():
        runner = cli.build_runner(testing)
        runner.test()
    samples = load_dump(str(dump))
    videos = videos_of(samples, test_facts(Path(task['data'])))
    dynamic, adapts = 'compute_ratio' in videos, task.get('adapts')
    result = {
        'settings': task['settings'],
        'controls': measure_controls(runner) if dynamic else None,
        'training': usage_in_training(runner, cfg) if adapts else None,
        'calibrated': measure_budgets(runner, cfg) if adapts else None,  # changes the network
        **summarise(videos, _static_gmacs(folder / 'config.py', checkpoint)),
        'weights': weights_hash(_load_checkpoint(str(checkpoint), 'cpu')['state_dict']),
        'seconds': time.perf_counter() - begin,
        'cpu_seconds': cpu_seconds(),
        'resumed': last is not None,
        'date': datetime.date.today().isoformat(),
        'environment': environment(),
    }
    write_json(folder / VIDEOS, videos)
    write_json(folder / RESULT, result)
    for old in folder.glob('epoch_*.pth'):
        if old != checkpoint:
            old.unlink()


def last_checkpoint(folder: Path, logger: str = 'silent') -> Path | None:
    """The newest whole checkpoint of a run's folder; the run goes on from it."""
    found = newest_checkpoint(folder, logger)
    return None if found is None else Path(found)


def videos_of(
    samples: Sequence[Mapping[str, Any]], of_videos: Mapping[str, Mapping[str, Any]]
) -> dict[str, list]:
    """What is kept of every test video, as lists in the order of the test set.

    Args:
        samples: Of ``tools/test.py --dump``.
        of_videos: What is known of each test video, by name; see :func:`~.footage.test_facts`.

    Raises:
        ValueError: If the predictions are not those of this test set.
    """
    names, facts = list(of_videos), list(of_videos.values())
    labels = [int(sample['gt_label']) for sample in samples]
    if labels != [fact['label'] for fact in facts]:
        raise ValueError(
            f'{len(labels)} predictions: expected those of the {len(facts)} test videos, '
            'with the same labels in the same order'
        )
    correct = [
        int(sample['pred_score'].argmax()) == label
        for sample, label in zip(samples, labels, strict=True)
    ]
    kept: dict[str, list] = {
        'video': names,
        'class_name': [fact['class_name'] for fact in facts],
        'still': [fact['still'] for fact in facts],
        'correct': correct,
    }
    if 'compute_ratio' in samples[0]:
        for key in ('compute_ratio', 'compute_gmacs', 'overhead_gmacs'):
            kept[key] = [sample[key] for sample in samples]
        kept['frames_computed'] = [_frames_computed(sample['policy']) for sample in samples]
    return kept


def _frames_computed(policy: Tensor) -> float:
    """Share of frames computed, mean over views and layers, of a policy (views, layers, 2); exact
    where the numbers of frames are powers of two."""
    return float((0.5 ** policy[..., 1].double()).mean())


def summarise(videos: Mapping[str, list], static_gmacs: float) -> dict[str, Any]:
    """Summary of the test set.

    Args:
        videos: What :func:`videos_of` returned.
        static_gmacs: Billions of multiply-adds of a clip, for networks without gates.
    """
    result: dict[str, Any] = {'top1': float(np.mean(videos['correct']))}
    result['correct'] = ''.join(str(int(right)) for right in videos['correct'])
    dynamic = 'compute_ratio' in videos
    result['ratio'] = _spread(videos['compute_ratio'] if dynamic else [1.0])
    result['gmacs'] = _spread(videos['compute_gmacs'] if dynamic else [static_gmacs])
    result['overhead_gmacs'] = float(np.mean(videos['overhead_gmacs'])) if dynamic else 0.0
    result['motion'] = motion_statistics(videos) if dynamic else None
    return result


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {name: float(getattr(np, name)(values)) for name in ('mean', 'min', 'max', 'std')}


def _static_gmacs(config: Path, checkpoint: Path) -> float:
    model, cfg = compare.load_recognizer(str(config), str(checkpoint))
    _, *shape = compare.decoded_videos(cfg, 1)[0]['inputs'][0].shape
    return static_cost(model.get_submodule('backbone'), shape) / 1e9


def cpu_seconds() -> float:
    """Processor time of this process and its finished children, which a busy machine leaves as it
    is."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Hash of a state dictionary."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def environment() -> dict[str, Any]:
    """Where and with what this process computes."""
    return {
        'device': torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        'cores': os.cpu_count(),
        'threads': torch.get_num_threads(),
        **versions(),
    }


def write_json(path: Path, content: object) -> None:
    """Write a file of which there is never a part."""
    put(f'{json.dumps(content, indent=1, allow_nan=False)}\n'.encode(), str(path))


def _end_with_stdin() -> None:
    while os.read(sys.stdin.fileno(), 1):  # not sys.stdin.read, whose lock forks would inherit
        pass
    os._exit(1)


if __name__ == '__main__':
    main()
