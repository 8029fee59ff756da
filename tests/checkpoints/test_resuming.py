# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""A training that was killed goes on from the newest whole checkpoint, whatever state it left."""

import os
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.fileio import LocalBackend
from mmengine.logging import MMLogger
from mmengine.registry import METRICS
from mmengine.runner import Runner
from torch import nn

from vared2_mmaction.checkpoints import resuming
from vared2_mmaction.checkpoints.reading import CheckpointError
from vared2_mmaction.checkpoints.resuming import NOTE, newest_checkpoint

from ..loading import load_tool
from .files import content


@pytest.fixture
def folder(tmp_path):
    """Of a training that has saved three epochs, as a kill never left it."""
    for epoch in (1, 2, 3):
        path = tmp_path / f'epoch_{epoch}.pth'
        torch.save(content(epoch, 10 * epoch), path)
        os.utime(path, (epoch, epoch))
    (tmp_path / NOTE).write_text(str(tmp_path / 'epoch_3.pth'))
    return tmp_path


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def without_note(folder):
    (folder / NOTE).unlink(missing_ok=True)


def empty_note(folder):
    (folder / NOTE).write_text('')


def binary_note(folder):
    (folder / NOTE).write_bytes(b'\xff\0\n')


def stale_note(folder):
    (folder / NOTE).write_text(str(folder / 'epoch_2.pth'))


def note_of_what_is_gone(folder):
    (folder / NOTE).write_text(str(folder / 'epoch_0.pth'))


def note_of_another_folder(folder):
    (folder / NOTE).write_text('/moved/since/epoch_3.pth')


def a_piece(folder):
    (folder / 'epoch_4.pth.part').write_bytes(b'PK')


def only_a_best(folder):
    torch.save(content(9, 90), folder / 'best_top1_epoch_9.pth')


def cut_late(folder):
    stale_note(folder)
    (folder / 'epoch_4.pth').write_bytes(b'')


def cut_last(folder):
    cut(folder / 'epoch_3.pth', -1)


def cut_half(folder):
    cut(folder / 'epoch_3.pth', 1000)


def cut_empty(folder):
    cut(folder / 'epoch_3.pth', 0)


def last_is_text(folder):
    (folder / 'epoch_3.pth').write_text('text')


def last_is_gone(folder):
    (folder / 'epoch_3.pth').unlink()


def last_are_weights(folder):
    torch.save(nn.Linear(1, 1).state_dict(), folder / 'epoch_3.pth')
    os.utime(folder / 'epoch_3.pth', (3, 3))


def two_are_cut(folder):
    cut_half(folder)
    cut(folder / 'epoch_2.pth', 0)


def nothing_is_whole(folder):
    two_are_cut(folder)
    cut(folder / 'epoch_1.pth', 10)


@pytest.mark.parametrize(
    ('left', 'epoch'),
    [
        *((left, 3) for left in (lambda folder: None, without_note, empty_note, binary_note)),
        *((left, 3) for left in (stale_note, note_of_what_is_gone, note_of_another_folder)),
        *((left, 3) for left in (a_piece, only_a_best, cut_late)),
        *((left, 2) for left in (cut_last, cut_half, cut_empty, last_is_text, last_is_gone)),
        (last_are_weights, 2),
        (two_are_cut, 1),
        (nothing_is_whole, None),
    ],
)
@pytest.mark.parametrize('then', [lambda folder: None, empty_note, without_note])
def test_the_newest_whole_one_is_found(left, epoch, then, folder):
    left(folder)
    then(folder)
    found = newest_checkpoint(folder)
    assert found == (None if epoch is None else str(folder / f'epoch_{epoch}.pth'))


def test_which_and_why_is_logged(folder, capsys):
    cut_half(folder)
    MMLogger.get_instance('which', file_mode='a')
    newest_checkpoint(folder)
    printed = capsys.readouterr().out
    assert re.search(r'passed over: .*epoch_3\.pth: expected a checkpoint of torch\.save', printed)
    assert 'epoch_2.pth is the newest whole checkpoint: epoch 2, iteration 20' in printed
    newest_checkpoint(folder / 'none')
    assert 'none holds no whole checkpoint: there is nothing to resume' in capsys.readouterr().out
    newest_checkpoint(folder, 'silent')
    assert not capsys.readouterr().out


def test_a_copied_folder_goes_on_where_the_note_says(folder):
    """Copies are all of the same moment, in the order of their names."""
    for age, epoch in enumerate((3, 2, 1)):
        os.utime(folder / f'epoch_{epoch}.pth', (age, age))
    assert newest_checkpoint(folder) == str(folder / 'epoch_3.pth')


def test_a_training_that_began_again_does_not_take_the_old_ones(folder):
    (folder / NOTE).write_text('epoch_1.pth')
    os.utime(folder / 'epoch_1.pth')
    assert newest_checkpoint(folder) == str(folder / 'epoch_1.pth')


@pytest.mark.parametrize('name', ['s3://bucket/epoch_2.pth', '.'])
def test_what_is_not_a_local_file_is_believed(name, folder):
    (folder / NOTE).write_text(name)
    assert newest_checkpoint(folder) == name


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.full((2,), float(index))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def train_step(self, data, optim_wrapper):
        loss = self.linear(data).square().mean()
        optim_wrapper.update_params(loss)
        return {'loss': loss.detach()}

    def val_step(self, data):
        return [{} for _ in data]


@METRICS.register_module()
class Better(BaseMetric):
    """A score that is higher after every epoch."""

    epochs = 0

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        self.epochs += 1
        return {'score': self.epochs}


def runner(work_dir: Path, epochs: int = 3, **changes) -> Runner:
    hook = {'type': 'CheckpointHook', 'interval': 1, 'max_keep_ckpts': 1}
    options = {
        'model': Model(),
        'work_dir': str(work_dir),
        'train_dataloader': torch.utils.data.DataLoader(Data(), batch_size=2),
        'train_cfg': {'by_epoch': True, 'max_epochs': epochs},
        'optim_wrapper': {'optimizer': {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9}},
        'default_hooks': {'checkpoint': hook},
        'experiment_name': f'{work_dir.name}_{epochs}_{len(os.listdir(work_dir))}',
        **changes,
    }
    return Runner(**options)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize(('moment', 'left'), [('before', 1), ('while', 1), ('after', 2)])
def test_a_kill_around_a_save_leaves_a_whole_checkpoint(moment, left, tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ('undisturbed', 'killed')]
    for folder in folders:
        folder.mkdir()
    weights = Model().state_dict()
    trainings = [runner(folder) for folder in folders]
    for training in trainings:
        training.model.load_state_dict(weights)
    trainings[0].train()
    replace, puts = os.replace, []

    def replace_or_die(part, path):
        puts.append(path)
        if len(puts) < 2:
            replace(part, path)
            return
        if moment == 'before':
            os.remove(part)
        elif moment == 'while':
            cut(Path(part), 1000)
        else:
            replace(part, path)
        raise Killed

    monkeypatch.setattr(os, 'replace', replace_or_die)
    with pytest.raises(Killed):
        trainings[1].train()
    monkeypatch.undo()
    assert newest_checkpoint(folders[1]) == str(folders[1] / f'epoch_{left}.pth')
    resumed = runner(folders[1], resume=True)
    resumed.train()
    assert (resumed.epoch, resumed.iter) == (3, 6)
    assert newest_checkpoint(folders[1]) == str(folders[1] / 'epoch_3.pth')
    orphan = {'epoch_1.pth'} if moment == 'after' else set()  # it was about to be removed
    assert {path.name for path in folders[1].glob('*.pth*')} == {'epoch_3.pth'} | orphan
    for key, value in trainings[0].model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value)


def test_a_failed_save_removes_nothing(tmp_path, monkeypatch):
    training = runner(tmp_path)
    save = training.save_checkpoint

    def full(*args, **kwargs):
        if training.epoch == 1:
            raise OSError('no space left')
        save(*args, **kwargs)

    monkeypatch.setattr(training, 'save_checkpoint', full)
    with pytest.raises(OSError, match='no space'):
        training.train()
    assert newest_checkpoint(tmp_path) == str(tmp_path / 'epoch_1.pth')


def test_links_and_devices_are_written_to(tmp_path):
    backend, target = LocalBackend(), tmp_path / 'target'
    target.write_bytes(b'old')
    (tmp_path / 'link').symlink_to(target)
    backend.put(b'new', tmp_path / 'link')
    assert target.read_bytes() == b'new'
    assert (tmp_path / 'link').is_symlink()
    backend.put(b'gone', os.devnull)
    assert not os.path.isfile(os.devnull)


@pytest.mark.parametrize(
    ('written', 'found'),
    [
        (lambda path: path.write_text('text'), 'another file or cut off'),
        (lambda path: path.touch(), 'an empty file'),
        (lambda path: torch.save([1, 2], path), 'found a list'),
        (lambda path: torch.save(Model().state_dict(), path), r'found linear\.weight'),
        (lambda path: torch.save({'state_dict': Model().state_dict()}, path), 'found state_dict'),
        (lambda path: torch.save(content('1'), path), 'found meta'),
        (lambda path: torch.save(content(message_hub={}), path), 'found meta'),
        (lambda path: torch.save(content(optimizer={'a': 1}), path), 'the same optimizer'),
        (lambda path: torch.save(content(param_schedulers=[1], optimizer=1), path), 'resumed'),
        (lambda path: torch.save(content(state_dict={'linear.bias': 1}), path), 'a tensor as'),
    ],
)
def test_what_cannot_be_resumed_is_named(written, found, tmp_path):
    path = tmp_path / 'some.pth'
    written(path)
    training = runner(tmp_path, resume=True, load_from=str(path))
    with pytest.raises(CheckpointError, match=rf'some\.pth: expected .*{found}') as caught:
        training.train()
    assert '\n' not in str(caught.value)


CONFIGS = [
    "x = __import__('os').system('touch TOUCHED')",
    "gpu_ids = [__import__('os').system('touch TOUCHED')]",
    "gpu_ids = range(0, 1)\nopen('TOUCHED', 'w')",
    "gpu_ids = range(0, 1); open('TOUCHED', 'w')",
    'gpu_ids = (lambda: open("TOUCHED", "w"))()',
    "_base_ = ['TOUCHED']",
    "custom_imports = dict(imports=['os'])\nopen('TOUCHED', 'w')",
    "{{ open('TOUCHED', 'w') }}",
    'gpu_ids = range(0, 10**30)',
    'syntax error (',
    '',
]


@pytest.mark.parametrize('config', [*CONFIGS, None, 3, ['x'], b'x'])
def test_no_config_of_a_checkpoint_is_executed(config, tmp_path):
    touched = tmp_path / 'touched'
    if isinstance(config, str):
        config = config.replace('TOUCHED', str(touched))
    runner(tmp_path, epochs=1).train()
    path = tmp_path / 'epoch_1.pth'
    saved = torch.load(path, weights_only=True)
    saved['meta'].update(config=config, cfg=config)
    saved['message_hub']['runtime_info']['cfg'] = config
    torch.save(saved, path)
    training = runner(tmp_path, epochs=2, resume=True)
    training.train()
    assert training.epoch == 2
    assert not touched.exists()


@pytest.mark.parametrize(
    ('text', 'number'),
    [('gpu_ids = range(0, 2)', 2), ('gpu_ids = [0, 1, 2]', 3), ('a = 1\ngpu_ids = range(4)\n', 4)],
)
def test_the_number_of_gpus_is_compared_as_before(text, number, tmp_path):
    runner(tmp_path, epochs=1).train()
    path = tmp_path / 'epoch_1.pth'
    saved = torch.load(path, weights_only=True)
    saved['meta']['config'] = text
    torch.save(saved, path)
    with pytest.raises(RuntimeError, match='Number of GPUs used'):
        runner(tmp_path, epochs=2, resume=True).train()
    training = runner(tmp_path, epochs=2, resume=True)
    training._world_size = number
    training.train()
    assert training.epoch == 2


@pytest.mark.parametrize('place', ['{0}', '{0}/victim', '{0}/work/../victim', '{0}/work/epoch_1'])
def test_a_checkpoint_removes_nothing_of_others(place, tmp_path):
    victim, work_dir = tmp_path / 'victim', tmp_path / 'work'
    victim.mkdir()
    work_dir.mkdir()
    training = runner(work_dir)
    info = training.message_hub.runtime_info
    info.update(best_ckpt=place.format(tmp_path), best_ckpt_a=str(work_dir / 'best_a_epoch_1.pth'))
    info['keep_ckpt_ids'] = ['../../victim']
    resuming.distrust(training)
    assert 'best_ckpt' not in info
    assert 'best_ckpt_a' in info
    assert 'keep_ckpt_ids' not in info
    info['keep_ckpt_ids'] = [1, 2]
    resuming.distrust(training)
    assert info['keep_ckpt_ids'] == [1, 2]


def train_config(folder: Path, *flags: str) -> Config:
    path = folder / 'config.py'
    path.write_text("load_from = 'static.pth'\nmodel = dict()\n")
    tool = load_tool('train')
    args = tool.build_parser().parse_args([str(path), '--work-dir', str(folder / 'work'), *flags])
    return tool.merge_args(Config.fromfile(path), args)


def test_what_training_starts_from_stays_where_there_is_nothing_to_resume(tmp_path):
    fresh = train_config(tmp_path, '--resume')
    assert (fresh.resume, fresh.load_from) == (False, 'static.pth')
    given = train_config(tmp_path, '--resume', '--cfg-options', 'load_from=other.pth')
    assert (given.resume, given.load_from) == (False, 'other.pth')
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work' / 'epoch_1.pth').touch()  # killed at the first save
    assert train_config(tmp_path, '--resume').load_from == 'static.pth'
    whole = tmp_path / 'work' / 'epoch_1.pth'
    torch.save(content(), whole)
    for flags in (('--resume',), ('--resume', '--cfg-options', 'load_from=other.pth')):
        cfg = train_config(tmp_path, *flags)
        assert (cfg.resume, cfg.load_from) == (True, str(whole))
    named = train_config(tmp_path, '--resume', 'named.pth')
    assert (named.resume, named.load_from) == (True, 'named.pth')


def with_scores(tmp_path, **hook):
    return runner(
        tmp_path,
        epochs=2,
        default_hooks={'checkpoint': {'type': 'CheckpointHook', **hook}},
        val_dataloader=torch.utils.data.DataLoader(Data(), batch_size=2),
        val_cfg={},
        val_evaluator={'type': 'Better'},
    )


def test_a_kill_while_a_better_one_is_saved_leaves_the_one_before(tmp_path, monkeypatch):
    training = with_scores(tmp_path, save_best='score', rule='greater')
    save = training.save_checkpoint

    def die(out_dir, filename, *args, **kwargs):
        if filename.startswith('best') and training.epoch == 2:
            raise Killed
        save(out_dir, filename, *args, **kwargs)

    monkeypatch.setattr(training, 'save_checkpoint', die)
    with pytest.raises(Killed):
        training.train()
    assert [path.name for path in tmp_path.glob('best*')] == ['best_score_epoch_1.pth']


@pytest.mark.parametrize(
    ('hook', 'left'),
    [
        ({'interval': 1, 'max_keep_ckpts': 1, 'filename_tmpl': 'latest.pth'}, 'latest.pth'),
        (
            {'save_best': 'score', 'rule': 'greater', 'filename_tmpl': 'latest.pth'},
            'best_score_latest.pth',
        ),
    ],
)
def test_a_checkpoint_of_the_name_of_the_one_before_stays(hook, left, tmp_path):
    """As in a loop by iterations, whose best ones are all of epoch 0."""
    training = with_scores(tmp_path, **hook)
    training.train()
    assert (tmp_path / left).is_file()
    saved = torch.load(tmp_path / left, weights_only=True)
    assert saved['meta']['epoch'] == 2


def test_a_validation_without_training_saves_nothing(tmp_path):
    assert with_scores(tmp_path, interval=1).val() == {'score': 1}
    assert not list(tmp_path.glob('*.pth'))


def test_a_score_that_no_metric_gives_is_named(tmp_path):
    message = r"^default_hooks\.checkpoint\.save_best='other': expected one .*\['score'\]$"
    with pytest.raises(ValueError, match=message):
        with_scores(tmp_path, interval=1, save_best='other', rule='greater').train()
    assert newest_checkpoint(tmp_path) == str(tmp_path / 'epoch_1.pth')
