# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Runs are done once, in order, side by side; what other settings made is not taken for them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

import vared2_mmaction
from studies import schedule
from studies.progress import StudyProgress, remaining_seconds
from studies.schedule import Resources, Scheduler, StaleResultError
from studies.study import Run, Study
from synthetic.moving_shapes import MovingShapes

from ...checkpoints.files import content

CONFIGS = Path(__file__).parents[3] / 'configs' / 'study'
VIDEOS = MovingShapes(train=2, val=1, test=2, size=32, frames=8)
# Stands for the process of a run: writes down when it ran and, as a result, what others need.
PROCESS = """
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
begin = time.monotonic()
if sys.argv[2] in folder.name:
    print('it went wrong')
    sys.exit(3)
task = json.loads((folder / 'run.json').read_text())
result = dict(
    settings=task['settings'], weights='of ' + folder.name, top1=0.5, seconds=1.0, resumed=False,
    training=dict(ratio=0.6, usage=[[[1.0] * 3, [0.4, 0.8, 1.0]]] * 18),
    ratio=dict(mean=0.6), gmacs=dict(mean=0.012), overhead_gmacs=0.001,
    times=(begin, time.monotonic()),
)
part = folder / 'part'
part.write_text(json.dumps(result))
part.replace(folder / 'result.json')  # at once, as the real one
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Folder of the video set."""
    return tmp_path_factory.mktemp('videos') / 'data'


@pytest.fixture
def make(tmp_path, data, monkeypatch):
    """Schedulers with stand-ins for the processes; those of runs named ``fails`` fail."""
    monkeypatch.setattr(Scheduler, '_clip_shape', (3, 32, 32, 32))
    monkeypatch.setattr(schedule, '_POLL', 0.02)

    def make(fails='nothing', stale='error', out='out', **changes):
        others: list[int] = []  # that were running when one began

        def start(self, run):
            others.append(len(self.processes))
            with open(self.folder(run) / 'run.log', 'a') as log:
                command = [sys.executable, '-c', PROCESS, str(self.folder(run)), fails]
                return subprocess.Popen(command, stdout=log)

        monkeypatch.setattr(Scheduler, '_start', start)
        plan = {'configs': CONFIGS, 'videos': VIDEOS, 'seeds': (0,), 'variants': ('static',)}
        study = Study(**{**plan, **changes})
        console = Console(file=open(tmp_path / 'log', 'a'))  # noqa: SIM115
        scheduler = Scheduler(study, tmp_path / out, data, stale=stale, console=console)
        scheduler.others = others
        return scheduler

    return make


def test_runs_follow_what_they_need_and_share_the_machine(make, tmp_path):
    variants = ('random', 'slimmed', 'temporal')
    scheduler = make(variants=variants)
    results = scheduler.run()
    assert set(results) == {Run(name, 0) for name in ('static', 'vared2', *variants)}
    times = {run.variant: result['times'] for run, result in results.items()}
    assert times['static'][1] < min(times['vared2'][0], times['temporal'][0])
    assert times['vared2'][1] < min(times['random'][0], times['slimmed'][0])
    assert max(scheduler.others) == 1
    assert results[Run('random', 0)]['settings']['start'] == 'of static_seed0'
    width = results[Run('slimmed', 0)]['settings']['config.model.backbone.base_channels']
    assert width == 6
    config = (tmp_path / 'out' / 'temporal_seed0' / 'config.py').read_text()
    assert str(tmp_path / 'out' / 'static_seed0' / 'epoch_12.pth') in config
    written = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert set(written['runs']) == {str(run) for run in results}
    assert written['settings']['videos.train'] == 2
    assert written['runs']['slimmed_seed0']['settings']['variant'] == 'slimmed'


def test_finished_runs_are_not_done_again(make, tmp_path):
    first = make(variants=('vared2',)).run()
    second = make(fails='static', variants=('vared2', 'temporal')).run()
    assert second[Run('static', 0)] == first[Run('static', 0)]
    assert second[Run('vared2', 0)]['times'] == list(first[Run('vared2', 0)]['times'])
    assert Run('temporal', 0) in second
    assert 'static_seed0: is done already' in (tmp_path / 'log').read_text()


def test_results_of_other_settings_are_refused(make):
    make().run()
    with pytest.raises(
        StaleResultError, match=r'static_seed0 .*other settings: .*end=1.5 \(now 1\)'
    ):
        make(epochs=(5, 5)).run()


def test_results_of_other_settings_are_made_again(make):
    first = make(variants=('vared2',)).run()
    second = make(stale='retrain', variants=('vared2',), epochs=(12, 3)).run()
    assert second[Run('static', 0)] == first[Run('static', 0)]
    assert second[Run('vared2', 0)]['times'] != first[Run('vared2', 0)]['times']
    assert second[Run('vared2', 0)]['settings']['config.train_cfg.max_epochs'] == 3


def test_results_of_other_settings_are_kept_if_asked_to(make):
    first = make().run()
    assert make(stale='keep', epochs=(5, 5)).run() == first


def test_unfinished_training_of_other_settings_is_noticed(make, tmp_path):
    assert make().run()
    folder = tmp_path / 'out' / 'static_seed0'
    (folder / 'result.json').unlink()
    (folder / 'epoch_3.pth').touch()
    for stale in ('keep', 'retrain'):  # there is nothing finished to keep
        make(stale=stale, epochs=(4 + len(stale), 4)).run()
        assert not (folder / 'epoch_3.pth').exists()
        (folder / 'result.json').unlink()
        (folder / 'epoch_3.pth').touch()
    with pytest.raises(StaleResultError, match='static_seed0'):
        make(epochs=(9, 9)).run()


def test_runs_hang_on_what_their_config_says(make, tmp_path):
    """Not on how it is written, nor on other files."""
    shutil.copytree(CONFIGS.parent, tmp_path / 'configs')
    configs = tmp_path / 'configs' / 'study'
    first = make(configs=configs).run()
    path = configs / 'static_r2plus1d.py'
    path.write_text(path.read_text() + '\n# Another comment.\n')
    (configs / 'vared2_r2plus1d.py').unlink()
    assert make(configs=configs, fails='static').run() == first
    path.write_text(path.read_text() + '\nval_dataloader = dict(batch_size=1)\n')  # is not used
    assert make(configs=configs, fails='static').run() == first
    path.write_text(path.read_text() + '\ntest_dataloader.update(batch_size=63)\n')
    with pytest.raises(StaleResultError, match=r'test_dataloader.batch_size=64 \(now 63\)'):
        make(configs=configs).run()
    second = make(configs=configs, stale='retrain').run()
    assert second[Run('static', 0)]['times'] != first[Run('static', 0)]['times']


@pytest.mark.parametrize('package', [torch, vared2_mmaction], ids=lambda package: package.__name__)
def test_results_of_another_version_are_refused(package, make, monkeypatch):
    make().run()
    monkeypatch.setattr(package, '__version__', 'another')
    named = rf"version\.{package.__name__}=.* \(now 'another'\)"
    with pytest.raises(StaleResultError, match=named):
        make().run()


def test_weights_that_a_result_started_from_are_settings(make, tmp_path):
    make(variants=('vared2',)).run()
    path = tmp_path / 'out' / 'static_seed0' / 'result.json'
    path.write_text(path.read_text().replace('of static_seed0', 'others'))
    with pytest.raises(StaleResultError, match="vared2_seed0 .*start='of static_seed0'"):
        make(variants=('vared2',)).run()


def test_failed_run(make, tmp_path):
    with pytest.raises(schedule.RunFailedError, match=r'(?s)vared2_seed0: .* 3.*went wrong'):
        make(fails='vared2', variants=('vared2',)).run()
    assert not (tmp_path / 'out' / 'results.json').exists()
    assert len(make(variants=('vared2',)).run()) == 2


def test_two_studies_do_not_share_a_folder(make, tmp_path):
    (tmp_path / 'out').mkdir()
    with (
        schedule._locked(tmp_path / 'out'),
        pytest.raises(ValueError, match='another study is at work'),
    ):
        make().run()


def test_mistakes(tmp_path):
    for name in ('jobs', 'threads', 'workers'):
        with pytest.raises(ValueError, match=f'--{name}: expected at least [01], got -1'):
            Resources(**{name: -1})
    with pytest.raises(ValueError, match="--stale: .*'never'"):
        Scheduler(Study(CONFIGS, VIDEOS), tmp_path, tmp_path, stale='never')


def test_last_checkpoint(tmp_path):
    note = tmp_path / 'last_checkpoint'
    assert schedule.last_checkpoint(tmp_path) is None
    note.write_text('')  # killed between opening and writing
    assert schedule.last_checkpoint(tmp_path) is None
    note.write_text('/moved/since/epoch_2.pth')
    assert schedule.last_checkpoint(tmp_path) is None
    (tmp_path / 'epoch_2.pth').touch()
    assert schedule.last_checkpoint(tmp_path) is None  # killed while it was written
    torch.save(content(epoch=2), tmp_path / 'epoch_2.pth')
    assert schedule.last_checkpoint(tmp_path) == tmp_path / 'epoch_2.pth'


def test_remaining_time():
    static, dynamic = Run('static', 0), Run('vared2', 0)
    took = {static: 100.0, Run('static', 1): 120.0, dynamic: 300.0}
    assert remaining_seconds([Run('static', 2)], {}, {}, 2) is None
    running = {Run('static', 2): 30.0, Run('vared2', 1): 400.0}
    unfinished = [*running, Run('vared2', 2), Run('channel', 0)]
    mean = (100 + 120 + 300) / 3
    assert remaining_seconds(unfinished, running, took, 2) == pytest.approx(
        (110 - 30 + 0 + 300 + mean) / 2
    )


@pytest.mark.parametrize('terminal', [True, False])
def test_progress(terminal, tmp_path):
    with open(tmp_path / 'log', 'w') as file:
        console = Console(file=file, force_terminal=terminal, width=100)
        with StudyProgress(console, 33) as progress:
            progress.event('static_seed0: starts')
            for epoch in range(3):
                progress.update(4, {Run('vared2', 1): (epoch, 10)}, 600.0)
    text = (tmp_path / 'log').read_text()
    assert 'static_seed0: starts' in text
    if terminal:
        assert '4/33' in text
        assert 'vared2_seed1' in text
    else:  # once a minute, not once a moment
        assert text.count('4/33 done, 10 min left, running: vared2_seed1 (epoch 0/10)') == 1
        assert len(text.splitlines()) == 2
