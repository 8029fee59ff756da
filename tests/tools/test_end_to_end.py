# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The commands, run as a user runs them, on a tiny video set and a tiny network.

Most are run in forks of this process, which have imported what takes longer than all that they do.
"""

import json
import multiprocessing
import os
import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import mmaction
import mmengine
import pytest
import torch
from mmaction.apis import ActionRecogInferencer, MMAction2Inferencer
from mmaction.registry import MODELS
from mmengine.config import Config

from vared2_mmaction.checkpoints.loading import is_own_parameter

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools'
STOCK_TOOLS = Path(mmaction.__file__).parent / '.mim' / 'tools'
LAYERS = 16  # two for each of the two convolutions of the four blocks

STATIC = f"""
_base_ = {str(ROOT / 'configs' / 'demo' / 'static_r2plus1d.py')!r}
model = dict(backbone=dict(base_channels=4), cls_head=dict(in_channels=32))
prefix = dict(video='VIDEOS')
loader = dict(batch_size=2, num_workers=0, persistent_workers=False)
train_dataloader = dict(dataset=dict(ann_file='VIDEOS/train.txt', data_prefix=prefix), **loader)
val_dataloader = dict(dataset=dict(ann_file='VIDEOS/val.txt', data_prefix=prefix), **loader)
test_dataloader = dict(dataset=dict(ann_file='VIDEOS/test.txt', data_prefix=prefix), **loader)
train_cfg = dict(max_epochs=1, val_begin=1, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=2), logger=dict(interval=1))
env_cfg = dict(dist_cfg=dict(backend='gloo'))
"""
DYNAMIC = """
_base_ = 'static.py'
model = dict(
    backbone=dict(type='VARED2ResNet2Plus1d', dynamic=dict()),
    neck=dict(type='SoftModulationGateNeck'),
    cls_head=dict(type='VARED2I3DHead'),
)
custom_hooks = [dict(type='BudgetScheduleHook')]
val_evaluator = [dict(type='AccMetric'), dict(type='ComputeMetric')]
test_evaluator = val_evaluator
"""
USAGE = """
_base_ = 'dynamic.py'
custom_hooks = [dict(type='BudgetScheduleHook'), dict(type='PolicyUsageHook')]
"""


@pytest.fixture(scope='module')
def folder(videos, tmp_path_factory):
    """Working folder with the configs static.py and dynamic.py."""
    folder = tmp_path_factory.mktemp('project')
    (folder / 'static.py').write_text(STATIC.replace('VIDEOS', str(videos)))
    (folder / 'dynamic.py').write_text(DYNAMIC)
    return folder


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return str(free.getsockname()[1])


def execute(script, arguments, folder, printed, environment):
    """What a fork does: run a script in a folder, and write into a file what it prints."""
    torch.set_num_threads(1)  # threads of libraries are not forked
    cv2.setNumThreads(0)
    os.chdir(folder)
    os.environ.update(environment)
    file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, 'w', buffering=1) for stream in (1, 2))
    sys.argv = [str(script), *map(str, arguments)]
    runpy.run_path(str(script), run_name='__main__')


@pytest.fixture(scope='module')
def run(folder):
    """Runs a script in forks of this process, in the working folder; returns all they printed."""

    def run(script, *arguments, processes=1):
        environment = {'LOCAL_RANK': '0'}
        if processes > 1:  # as torch.distributed.run does
            environment = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': free_port()}
            environment['WORLD_SIZE'] = str(processes)
        forks, files = [], [folder / f'printed_{rank}.txt' for rank in range(processes)]
        for rank, file in enumerate(files):
            own = {'RANK': str(rank), 'LOCAL_RANK': str(rank)} if processes > 1 else {}
            given = (script, arguments, folder, file, {**environment, **own})
            forks.append(multiprocessing.get_context('fork').Process(target=execute, args=given))
            forks[-1].start()
        for fork, file in zip(forks, files, strict=True):
            fork.join(180)
            if fork.exitcode is None:
                fork.kill()
            assert fork.exitcode == 0, file.read_text()[-4000:]
        return ''.join(file.read_text() for file in files)

    return run


@pytest.fixture(scope='module')
def start(folder):
    """Starts a command in the working folder and returns all that it printed."""

    def start(*command, **environment):
        given = {'PYTHONPATH': str(ROOT), 'PYTHON': sys.executable, 'PORT': free_port()}
        given |= {'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore', **environment}
        if Path(command[0]).suffix == '.py':
            command = (sys.executable, *command)
        done = subprocess.run(
            [str(part) for part in command],
            cwd=folder,
            env={**os.environ, **given},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    return start


@pytest.fixture(scope='module')
def static_checkpoint(run, folder):
    run(TOOLS / 'train.py', 'static.py', '--work-dir', 'static')
    return folder / 'static' / 'epoch_1.pth'


@pytest.fixture(scope='module')
def trained(run, folder, static_checkpoint):
    """What training from the static weights printed, and its checkpoint."""
    options = ['--work-dir', 'dynamic', '--cfg-options', f'load_from={static_checkpoint}']
    return run(TOOLS / 'train.py', 'dynamic.py', *options), folder / 'dynamic' / 'epoch_1.pth'


@pytest.fixture(scope='module')
def varied(trained, folder):
    """The trained checkpoint with gates that answer differently for every layer."""
    return with_gates(trained[1], folder / 'varied.pth', bias=0.0, std=1.0)


@pytest.fixture(scope='module')
def closed(trained, folder):
    """The trained checkpoint with gates that leave only the cheapest option on."""
    return with_gates(trained[1], folder / 'closed.pth', bias=-5.0, std=0.0)


def with_gates(source, target, bias, std):
    checkpoint = torch.load(source)
    random = torch.Generator().manual_seed(0)
    for key, value in checkpoint['state_dict'].items():
        if key.endswith('gate.fc2.bias'):
            value.fill_(bias)
        if key.endswith('gate.fc2.weight'):
            value.normal_(std=std, generator=random)
    torch.save(checkpoint, target)
    return target


def scalars(work_dir):
    """Logged lines of the newest run in a work folder."""
    newest = max(work_dir.glob('*/vis_data/scalars.json'), key=os.path.getmtime)
    return [json.loads(line) for line in newest.read_text().splitlines()]


def printed(output, name):
    """The last value of a metric that a command printed."""
    return float(re.findall(rf'{name}: ([\d.]+)', output)[-1])


def test_training_logs_the_compute(trained, folder):
    *train, validation = scalars(folder / 'dynamic')
    assert len(train) == 3
    assert all(0 < step['compute_ratio'] <= 1 and step['loss_budget'] >= 0 for step in train)
    assert all(
        step['loss'] == pytest.approx(step['loss_cls'] + step['loss_budget'], rel=1e-3)
        for step in train
    )
    assert 0 < validation['compute/ratio'] <= 1
    assert validation['compute/gmacs'] > 0
    assert 0 <= validation['acc/top1'] <= 1
    assert all('compute_ratio' not in step for step in scalars(folder / 'static'))


def test_static_weights_load_with_only_own_parameters_missing(trained):
    output, path = trained
    beside = ('num_batches_tracked', '_options.used')  # no weights
    keys = [key for key in torch.load(path)['state_dict'] if not key.endswith(beside)]
    own = sum(map(is_own_parameter, keys))
    assert 0 < own < len(keys)
    loaded = f'{len(keys) - own} of {len(keys)} tensors of the network loaded'
    (rest,) = re.findall(f'{loaded}(.*)', output)
    assert rest.startswith(f'; {own} of gates and cheap operations are not in the file')
    assert not re.search('missing|mismatch|unused', rest)


def test_checkpoint_of_the_trainer_loads_with_protection_on(trained):
    checkpoint = torch.load(trained[1], weights_only=True)
    assert checkpoint['meta']['epoch'] == 1
    assert 'train/compute_ratio' in checkpoint['message_hub']['log_scalars']


def test_training_resumes(run, trained, folder):
    before = torch.load(trained[1])
    output = run(
        *(TOOLS / 'train.py', 'dynamic.py', '--work-dir', 'dynamic', '--resume'),
        *('--cfg-options', 'train_cfg.max_epochs=2'),
    )
    assert f'resumed epoch: {before["meta"]["epoch"]}' in output
    after = torch.load(folder / 'dynamic' / 'epoch_2.pth')
    assert after['meta']['iter'] == 2 * before['meta']['iter']
    assert {step['epoch'] for step in scalars(folder / 'dynamic') if 'loss' in step} == {2}


def check_dump(path, output):
    """Dumped samples carry their compute, and what was printed is their mean."""
    samples = mmengine.load(path)
    assert len(samples) == 3
    for sample in samples:
        assert sample['policy'].shape == (1, LAYERS, 2)
        assert not sample['policy'].is_floating_point()
        assert sample['policy'].min() >= 0
        assert sample['policy'].max() <= 2
    ratios = [sample['compute_ratio'] for sample in samples]
    assert 0 < min(ratios) < 1
    assert printed(output, 'compute/ratio') == pytest.approx(sum(ratios) / 3, abs=1e-4)
    assert printed(output, 'compute/gmacs') > 0
    right = sum(int(sample['pred_label']) == int(sample['gt_label']) for sample in samples)
    assert printed(output, 'acc/top1') == pytest.approx(right / 3, abs=1e-4)
    return samples


@pytest.fixture(scope='module')
def tested(run, varied, folder):
    """What testing printed, and what it dumped."""
    options = ['--dump', 'ours.pkl', '--show-dir', 'pictures', '--work-dir', 'test']
    output = run(TOOLS / 'test.py', 'dynamic.py', varied, *options)
    return output, check_dump(folder / 'ours.pkl', output)


def test_dumped_policies_differ_between_layers(tested):
    policies = torch.cat([sample['policy'] for sample in tested[1]])
    assert (policies != policies[:, :1]).any()


def test_show_dir_holds_a_picture_of_every_frame(tested, folder):
    pictures = list((folder / 'pictures').rglob('*.png'))
    assert len(pictures) == 3 * 32


def test_mmaction2s_own_tools_run_the_config(run, start, varied, tested, folder, static_checkpoint):
    run(
        *(STOCK_TOOLS / 'train.py', 'dynamic.py', '--work-dir', 'stock'),
        *('--cfg-options', f'load_from={static_checkpoint}'),
    )
    assert all('compute_ratio' in step for step in scalars(folder / 'stock')[:-1])
    # A process of its own has imported nothing of this package before it reads the config.
    output = start(STOCK_TOOLS / 'test.py', 'dynamic.py', varied, '--dump', 'stock.pkl')
    for theirs, ours in zip(check_dump(folder / 'stock.pkl', output), tested[1], strict=True):
        torch.testing.assert_close(theirs['pred_score'], ours['pred_score'], rtol=0, atol=1e-4)
        assert theirs['compute_ratio'] == pytest.approx(ours['compute_ratio'])


def test_distributed_training_with_closed_gates(run, closed, folder):
    """Nothing is unused for DistributedDataParallel when most cheap operations do not run."""
    (folder / 'distributed.py').write_text(USAGE)
    output = run(
        *(TOOLS / 'train.py', 'distributed.py', '--launcher', 'pytorch'),
        *('--work-dir', 'distributed'),
        *('--cfg-options', f'load_from={closed}', 'train_dataloader.batch_size=1'),
        processes=2,
    )
    *lines, validation = scalars(folder / 'distributed')
    train = [line for line in lines if 'loss' in line]
    assert len(train) == 3  # six videos, two processes
    assert all(step['compute_ratio'] < 0.7 for step in train)
    assert validation['compute/ratio'] < 0.7
    usage = [line for line in lines if 'usage/channel_2' in line]
    assert [line['step'] for line in usage] == [line['step'] for line in train]
    assert all(line['usage/channel_2'] == 1 for line in usage)
    (warning,) = re.findall('PolicyUsageHook: (.*)', output)
    assert 'all 6 clips of iterations 1 to 3' in warning


def test_distributed_test_agrees_with_one_process(run, varied, tested, folder):
    options = ['--launcher', 'pytorch', '--dump', 'two.pkl', '--work-dir', 'distributed']
    output = run(TOOLS / 'test.py', 'dynamic.py', varied, *options, processes=2)
    together = check_dump(folder / 'two.pkl', output)
    assert output.count('executed: ') == 1
    for one, two in zip(tested[1], together, strict=True):
        torch.testing.assert_close(one['pred_score'], two['pred_score'], rtol=0, atol=1e-4)
        assert two['compute_ratio'] == pytest.approx(one['compute_ratio'])
        assert (two['policy'] == one['policy']).all()


def test_a_script_tests_with_torchs_launcher(start, varied, tested, folder):
    options = ['--dump', 'one.pkl', '--work-dir', 'launched']
    output = start(TOOLS / 'dist_test.sh', 'dynamic.py', varied, '1', *options)
    for own, other in zip(check_dump(folder / 'one.pkl', output), tested[1], strict=True):
        torch.testing.assert_close(own['pred_score'], other['pred_score'], rtol=0, atol=1e-4)


def test_scripts_start_the_same_processes(start, folder):
    tells = folder / 'tells.sh'
    tells.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    tells.chmod(0o755)
    given = {'PYTHON': str(tells), 'PORT': '1234'}
    train = start(TOOLS / 'dist_train.sh', 'a.py', '2', '--work-dir', 'b', **given).splitlines()
    test = start(TOOLS / 'dist_test.sh', 'a.py', 'c.pth', '2', '--work-dir', 'b', **given)
    test = test.splitlines()
    assert train[:2] == ['-m', 'torch.distributed.run']
    assert {'--nnodes=1', '--nproc_per_node=2', '--master_port=1234'} < set(train)
    common = ['--launcher', 'pytorch', '--work-dir', 'b']
    number = train.index(str(TOOLS / 'train.py'))
    assert train[number + 1 :] == ['a.py', *common]
    assert test == [*train[:number], str(TOOLS / 'test.py'), 'a.py', 'c.pth', *common]


# MMAction2 1.2.0: MMAction2Inferencer documents return_datasamples, but refuses it.
@pytest.mark.parametrize('inferencer', [ActionRecogInferencer, MMAction2Inferencer])
def test_inferencers_give_the_compute(inferencer, varied, tested, folder, videos):
    infer = inferencer(str(folder / 'dynamic.py'), str(varied), device='cpu')
    result = infer(str(videos / 'test0.mp4'), return_datasamples=True)
    (sample,) = result['predictions']
    assert sample.compute_ratio == pytest.approx(tested[1][0]['compute_ratio'])
    assert (sample.policy == tested[1][0]['policy']).all()


def test_mmaction2_inferencer_classifies(varied, tested, folder, videos):
    infer = MMAction2Inferencer(str(folder / 'dynamic.py'), str(varied), device='cpu')
    (result,) = infer(str(videos / 'test0.mp4'))['predictions']
    expected = tested[1][0]['pred_score'].tolist()
    assert result['rec_scores'][0] == pytest.approx(expected, abs=1e-5)


@pytest.fixture
def fails(folder, monkeypatch, tmp_path):
    """Trains in this process, where it must fail before a step, and returns the error's text."""

    def fails(kind, *options, config='dynamic.py'):
        monkeypatch.chdir(folder)
        monkeypatch.setenv('LOCAL_RANK', '0')
        argv = ['train.py', config, '--work-dir', str(tmp_path), '--traceback']
        argv += ['--cfg-options', *options]
        monkeypatch.setattr(sys, 'argv', argv)
        with pytest.raises(kind) as caught:
            runpy.run_path(str(TOOLS / 'train.py'), run_name='__main__')
        assert not list(tmp_path.rglob('scalars.json'))
        return str(caught.value)

    return fails


def save_weights(path, backbone):
    weights = MODELS.build(backbone).state_dict()
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in weights.items()}}, path)


def deeper(backbone):
    return {**backbone, 'stage_blocks': (2, 1, 1, 1)}


def wider(backbone):
    return {**backbone, 'base_channels': 8}


def flat(backbone):
    return {'type': 'ResNet', 'depth': 18}


# A deeper network of the same widths has every weight that is asked for, and more.
@pytest.mark.parametrize(
    ('change', 'key'),
    [
        (deeper, 'backbone.layer1.1.conv1'),
        (wider, 'backbone.conv1.conv.conv_s.weight'),
        (flat, 'backbone.conv1.conv.conv_s.weight'),
    ],
)
def test_checkpoint_of_another_network(change, key, fails, folder):
    stock = Config.fromfile(folder / 'static.py').model.backbone
    save_weights(folder / 'other.pth', change(stock))
    assert key in fails(RuntimeError, f'load_from={folder / "other.pth"}')


@pytest.mark.parametrize(
    ('kind', 'option', 'named'),
    [
        (ValueError, 'model.backbone.dynamic.chanel=2', 'chanel'),
        (ValueError, 'model.backbone.dynamic.gate.dominace=0.5', 'dominace'),
        (ValueError, 'model.neck=None', 'model.neck'),
        (ValueError, 'model.cls_head=None', 'model.cls_head'),
        (ValueError, 'model.cls_head.type=I3DHead', 'VARED2I3DHead'),
        (ValueError, 'model.backbone.type=VARED2Resnet3d', 'VARED2Resnet3d'),
        (FileNotFoundError, 'load_from=nothing.pth', 'nothing.pth'),
        (FileNotFoundError, 'train_dataloader.dataset.ann_file=no.txt', 'no.txt'),
        (FileNotFoundError, 'val_dataloader.dataset.ann_file=no.txt', 'no.txt'),
        (FileNotFoundError, 'train_dataloader.dataset.data_prefix.video=gone', 'gone/train0.mp4'),
    ],
)
def test_mistakes_are_named_before_training(kind, option, named, fails):
    assert named in fails(kind, option)


def test_video_that_cannot_be_decoded_is_named(fails, folder):
    (folder / 'broken.mp4').write_bytes(b'not a video' * 100)
    (folder / 'broken.txt').write_text('broken.mp4 0\nbroken.mp4 1\n')
    key = 'train_dataloader.dataset'
    options = [f'{key}.ann_file={folder / "broken.txt"}', f'{key}.data_prefix.video={folder}']
    assert str(folder / 'broken.mp4') in fails(RuntimeError, *options)
