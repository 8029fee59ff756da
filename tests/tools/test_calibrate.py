# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""tools/calibrate.py: checkpoints of several budgets, which tools/test.py loads."""

import json
from pathlib import Path

import mmengine
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from commands.testing import training_clips

from ..loading import load_tool
from ..networks import write_network, write_test_config
from ..videos import SPLITS

TRAIN = """
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
train_dataloader = dict(
    batch_size=2,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='VideoDataset',
        ann_file='VIDEOS/train.txt',
        data_prefix=dict(video='VIDEOS'),
        pipeline=[],
    ),
)
"""


@pytest.fixture
def project(tmp_path, videos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    config, checkpoint = write_network(tmp_path)
    path = tmp_path / 'calibrated.py'
    write_test_config(path, config, videos, TRAIN.replace('VIDEOS', str(videos)))
    return str(path), checkpoint


def run(project, *arguments):
    load_tool('calibrate').main([*project, '--out', 'out', '--no-optimize', *arguments])
    with open('out/curve.json') as file:
        return json.load(file)


def test_the_curve_is_that_of_the_checkpoints(project, tmp_path, capsys):
    loaded, dear, cheap = run(project, '--ratios', '0.87', '0.95')
    assert [loaded['asked'], dear['asked'], cheap['asked']] == [None, 0.95, 0.87]
    assert dear['calibration'] == pytest.approx(0.95, abs=0.02)  # of six clips
    assert dear['compute/ratio_min'] >= cheap['compute/ratio_min']
    assert dear['compute/ratio_max'] >= cheap['compute/ratio_max']
    assert (tmp_path / 'out' / 'curve.png').stat().st_size
    assert 'as loaded' in capsys.readouterr().out

    dumped = [project[0], cheap['checkpoint'], '--no-optimize', '--dump', 'tested.pkl']
    load_tool('test').main(dumped)
    tested = [sample['compute_ratio'] for sample in mmengine.load('tested.pkl')]
    assert sum(tested) / len(tested) == pytest.approx(cheap['compute/ratio'])


@pytest.mark.parametrize(('in_training', 'warns'), [(2, False), (3, True)])
def test_small_batches_are_warned_of(in_training, warns, project, capsys):
    options = ['--cfg-options', f'train_dataloader.batch_size={in_training}']
    run(project, '--ratios', '0.95', *options)
    said = 'test_dataloader.batch_size=2: BatchNorm is estimated over batches of so few'
    assert (said in capsys.readouterr().out) == warns


def test_a_training_loader_without_a_batch_size_is_taken(project, capsys):
    sampler = "dict(type='BatchSampler', _scope_='torch', batch_size=3, drop_last=False)"
    path = Path(project[0])
    path.write_text(
        f"{path.read_text()}\ndel train_dataloader['batch_size']\n"
        f'train_dataloader.update(batch_sampler={sampler})\n'
    )
    _, point = run(project, '--ratios', '0.95')
    assert point['calibration'] == pytest.approx(0.95, abs=0.02)
    assert 'BatchNorm is estimated over batches' not in capsys.readouterr().out


ACCURACY = "dict(type='AccMetric', metric_list=('top_k_accuracy',))"
COMPUTE = "dict(type='mmaction.ComputeMetric')"
MATRIX = "dict(type='ConfusionMatrix', num_classes=3)"


@pytest.mark.parametrize(
    'evaluator', [f'[{ACCURACY}, {COMPUTE}]', f"dict(type='Evaluator', metrics=[{ACCURACY}])"]
)
def test_evaluators_are_taken_as_they_are_written(evaluator, project):
    Path(project[0]).write_text(f'{Path(project[0]).read_text()}\ntest_evaluator = {evaluator}\n')
    for point in run(project, '--ratios', '0.95'):
        assert 0 <= point['acc/top1'] <= 1
        assert 0 < point['compute/ratio'] <= 1


def test_of_metrics_that_are_no_number_there_is_no_curve(project, capsys):
    text = Path(project[0]).read_text()
    Path(project[0]).write_text(f'{text}\ntest_evaluator = [{MATRIX}, {ACCURACY}]\n')
    point = run(project, '--ratios', '0.95')[-1]
    assert 'acc/top1' in point
    assert not any('confusion' in key or 'result' in key for key in point)


@pytest.mark.parametrize(
    ('evaluator', 'said'),
    [
        ('None', 'test_evaluator=None: expected a metric, or a list of them'),
        ('[]', 'test_evaluator=[]: expected a metric'),
        (COMPUTE, "test_evaluator: expected a metric of accuracy, found ['ComputeMetric']"),
        (f'[{MATRIX}]', "expected a metric of accuracy, found ['ConfusionMatrix']"),
    ],
)
def test_evaluators_without_accuracy_are_refused_before_a_test(
    evaluator, said, project, capsys, monkeypatch
):
    tested = []
    monkeypatch.setattr(Runner, 'test', lambda runner: tested.append(runner))
    Path(project[0]).write_text(f'{Path(project[0]).read_text()}\ntest_evaluator = {evaluator}\n')
    with pytest.raises(SystemExit):
        run(project, '--ratios', '0.95')
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not tested


def test_training_videos_are_found_in_wrappers(project):
    cfg = Config.fromfile(project[0])
    one = cfg.train_dataloader.dataset
    twice = {'type': 'ConcatDataset', 'datasets': [one, one]}
    cfg.train_dataloader.dataset = {'type': 'RepeatDataset', 'times': 3, 'dataset': twice}
    number = sum(len(batch['inputs']) for batch in training_clips(cfg))
    assert number == 2 * len(SPLITS['train'])


def test_a_wrapped_test_set_reads_them(project):
    cfg = Config.fromfile(project[0])
    expected = [clip for batch in training_clips(cfg) for clip in batch['inputs']]
    one = cfg.test_dataloader.dataset
    cfg.test_dataloader.dataset = {'type': 'ConcatDataset', 'datasets': [one, one]}
    found = [clip for batch in training_clips(cfg) for clip in batch['inputs']]
    assert torch.equal(torch.stack(found), torch.stack(expected))
    cfg.test_dataloader.dataset = {'type': 'VideoDataset'}
    with pytest.raises(ValueError, match=r'test_dataloader\.dataset: expected one with a pipeline'):
        training_clips(cfg)


def test_training_videos_that_are_repeated_are_read_once(project):
    cfg = Config.fromfile(project[0])
    cfg.train_dataloader.dataset.update(type='RepeatAugDataset', num_repeats=2, sample_once=True)
    assert sum(len(batch['inputs']) for batch in training_clips(cfg)) == len(SPLITS['train'])


def test_a_static_network_needs_no_training(project, capsys):
    state = torch.load(project[1])['state_dict']
    parts = '.gate.', '.channel_options.', '.temporal_options.'
    static = {k: v for k, v in state.items() if not any(part in k for part in parts)}
    torch.save({'state_dict': static}, 'static.pth')
    loaded, cheap = run((project[0], 'static.pth'), '--from-static', '--ratios', '0.9')
    assert loaded['compute/ratio'] == 1
    assert cheap['compute/ratio'] == pytest.approx(0.9, abs=0.05)

    for checkpoint, flag in (('static.pth', ()), (project[1], ('--from-static',))):
        with pytest.raises(SystemExit):
            run((project[0], checkpoint), *flag, '--ratios', '0.9')
        assert '--from-static is for static ones' in capsys.readouterr().err


def test_what_is_out_of_reach_is_said_before_a_test(project, capsys, monkeypatch):
    tested = []
    monkeypatch.setattr(Runner, 'test', lambda runner: tested.append(runner))
    for options, said in (
        (('0.9', '0.01'), 'ratio=0.01: out of reach without training: expected a share from 0.'),
        (('0.9', '--max-ratio', '0.8'), '--max-ratio 0.8: expected a share from 0.9, the largest'),
    ):
        with pytest.raises(SystemExit):
            run(project, '--ratios', *options)
        assert said in capsys.readouterr().err.splitlines()[-1]
    assert not tested
