# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""One run: trained, interrupted, resumed, tested, summarised."""

import json
import subprocess
from pathlib import Path

import mmengine
import pytest
import torch
from mmaction.registry import HOOKS
from mmengine.hooks import Hook

from studies import run
from studies.schedule import LOG, Scheduler
from studies.study import Run, Study, set_data
from synthetic.moving_shapes import MovingShapes, make_moving_shapes

CONFIGS = Path(__file__).parents[3] / 'configs' / 'study'
VIDEOS = MovingShapes(
    train=8, val=1, test=4, size=32, frames=8, classes=('shows_star', 'moves_left')
)
TWO_STAGES = {
    **{'num_stages': 2, 'stage_blocks': (1, 1), 'inflate': (1, 1), 'out_indices': (1,)},
    **{'spatial_strides': (1, 2), 'temporal_strides': (1, 2), 'dilations': (1, 1)},
    'base_channels': 4,
}
SMALL = {f'model.backbone.{key}': value for key, value in TWO_STAGES.items()}
SMALL |= {'model.cls_head.in_channels': 8}
FIXED = [[0, 1]] * 10


class Interrupted(Exception):
    """Stands for the end of the process."""


@HOOKS.register_module()
class InterruptedTwice(Hook):
    """Interrupts a training while there is a file in its folder that says so."""

    def before_train_epoch(self, runner):
        flag = Path(runner.work_dir) / 'interrupt'
        if flag.exists() and runner.epoch == 2:
            flag.unlink()
            raise Interrupted


@pytest.fixture
def task(tmp_path):
    """A task of the dynamic network, with a flag that interrupts it."""
    make_moving_shapes(tmp_path / 'data', VIDEOS)
    study = Study(CONFIGS, VIDEOS, SMALL, epochs=(2, 3))
    cfg = study.config(Run('vared2', 0))
    set_data(cfg, str(tmp_path / 'data'), workers=0)
    cfg.load_from = None
    cfg.work_dir = str(tmp_path)
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='InterruptedTwice')]
    cfg.train_dataloader.batch_size = 4
    cfg.dump(tmp_path / 'config.py')
    (tmp_path / 'interrupt').touch()
    return {
        'threads': 1,
        'data': str(tmp_path / 'data'),
        'settings': {'seed': 0},
        'adapts': True,
    }


def test_interrupted_run_goes_on(task, tmp_path, monkeypatch):
    monkeypatch.setattr('studies.motion.PERMUTATIONS', 10)
    with pytest.raises(Interrupted):
        run.run(tmp_path, task)
    assert not (tmp_path / run.RESULT).exists()
    assert run.last_checkpoint(tmp_path) == tmp_path / 'epoch_2.pth'
    run.run(tmp_path, task)
    result = json.loads((tmp_path / run.RESULT).read_text())
    assert result['resumed']
    assert result['settings'] == task['settings']
    checkpoint = torch.load(tmp_path / 'epoch_3.pth')
    assert checkpoint['meta']['epoch'] == 3
    assert checkpoint['meta']['iter'] == 3 * 2
    assert result['weights'] == run.weights_hash(checkpoint['state_dict'])
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_3.pth']
    videos = json.loads((tmp_path / run.VIDEOS).read_text())
    assert result['ratio']['mean'] == pytest.approx(sum(videos['compute_ratio']) / 4)
    assert result['gmacs']['mean'] > result['overhead_gmacs'] > 0
    assert result['top1'] == sum(videos['correct']) / 4
    assert result['correct'] == ''.join('01'[right] for right in videos['correct'])
    assert result['controls']['own']['ratio'] == pytest.approx(result['ratio']['mean'])
    assert result['controls']['own']['top1'] == result['top1']
    assert all(
        point['ratio'] == pytest.approx(point['budget'], abs=0.1) for point in result['calibrated']
    )
    assert result['calibrated']
    usage = torch.tensor(result['training']['usage'])
    assert usage.shape[:2] == (len(mmengine.load(tmp_path / 'test.pkl')[0]['policy'][0]), 2)
    assert (usage[..., -1] == 1).all()
    assert (usage.diff() >= 0).all()
    assert 0 < result['training']['ratio'] <= 1


@pytest.mark.parametrize(
    ('variant', 'equal_compute'), [('random', 0.4), ('fixed', FIXED), ('pruned_60', None)]
)
def test_what_is_compared_trains_and_is_tested(variant, equal_compute, tmp_path, monkeypatch):
    monkeypatch.setattr('studies.motion.PERMUTATIONS', 10)
    make_moving_shapes(tmp_path / 'data', VIDEOS)
    study = Study(CONFIGS, VIDEOS, SMALL, epochs=(2, 2))
    cfg = study.config(Run(variant, 0), equal_compute)
    set_data(cfg, str(tmp_path / 'data'), workers=0)
    cfg.load_from, cfg.work_dir, cfg.train_dataloader.batch_size = None, str(tmp_path), 4
    cfg.dump(tmp_path / 'config.py')
    run.run(tmp_path, {'threads': 1, 'data': str(tmp_path / 'data'), 'settings': {}})
    result = json.loads((tmp_path / run.RESULT).read_text())
    assert result['controls']['own']['ratio'] == pytest.approx(result['ratio']['mean'])
    assert result['ratio']['min'] < 1
    apart = result['ratio']['max'] - result['ratio']['min']
    assert (apart > 0) == (variant == 'random')


def sample(label, predicted, options):
    scores = torch.zeros(3)
    scores[predicted] = 1
    policy = torch.tensor(options)[None]
    return {
        'gt_label': torch.tensor([label]),
        'pred_score': scores,
        'policy': policy,
        'compute_ratio': 0.5 + 0.1 * label,
        'compute_gmacs': 2.0,
        'overhead_gmacs': 0.25,
    }


def test_what_is_kept_of_videos():
    facts = [{'label': label, 'class_name': f'c{label}', 'still': label == 0} for label in range(3)]
    of_videos = {f'test/{i}.mp4': fact for i, fact in enumerate(facts)}
    samples = [
        sample(label, predicted, options)
        for label, predicted, options in (
            (0, 0, [[2, 2], [0, 1]]),
            (1, 2, [[0, 0], [0, 0]]),
            (2, 2, [[0, 1], [1, 0]]),
        )
    ]
    videos = run.videos_of(samples, of_videos)
    assert videos['still'] == [True, False, False]
    assert videos['correct'] == [True, False, True]
    assert videos['frames_computed'] == [0.375, 1.0, 0.75]
    result = run.summarise(videos, 9.0)
    assert result['correct'] == '101'
    assert result['top1'] == pytest.approx(2 / 3)
    assert result['ratio']['min'] == pytest.approx(0.5)
    assert result['gmacs']['mean'] == 2
    assert result['motion']['all']['still'] == 0.375
    for stock in samples:
        for key in ('compute_ratio', 'compute_gmacs', 'overhead_gmacs', 'policy'):
            del stock[key]
    static = run.summarise(run.videos_of(samples, of_videos), 9.0)
    assert static['gmacs'] == {'mean': 9, 'min': 9, 'max': 9, 'std': 0}
    assert static['ratio']['mean'] == 1
    assert static['motion'] is None
    with pytest.raises(ValueError, match='expected those of the 3 test videos'):
        run.videos_of(samples[::-1], of_videos)


def test_hash_of_weights():
    state = {'b': torch.ones(2), 'a': torch.zeros(3, dtype=torch.int64)}
    same = dict(reversed(state.items()))
    assert run.weights_hash(same) == run.weights_hash(state)
    changed = {**state, 'b': torch.tensor([1.0, 1.0001])}
    assert run.weights_hash(changed) != run.weights_hash(state)


def test_process_ends_with_the_study(tmp_path, monkeypatch):
    """A worker that waits for the lock of its folder is gone when its standard input is."""
    monkeypatch.setenv('PYTHONPATH', str(CONFIGS.parents[1]))
    monkeypatch.chdir(tmp_path)
    scheduler = Scheduler(Study(CONFIGS, VIDEOS), tmp_path, tmp_path)
    folder = scheduler.folder(Run('static', 0))
    folder.mkdir()
    mmengine.dump({}, folder / 'run.json')
    with run.locked(folder):
        process = scheduler._start(Run('static', 0))
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.stdin.close()
        assert process.wait(300) == 1
    assert 'Error' not in (folder / LOG).read_text()
