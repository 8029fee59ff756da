# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Data sets of stock configs are taken as they are, and what is missing is named."""

import functools
import http.server
import os
import threading

import mmengine
import numpy as np
import pytest
from mmaction.datasets import BaseActionDataset
from mmaction.registry import DATASETS
from mmaction.utils import register_all_modules
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DefaultScope

from commands import check_data as module
from commands.check_data import check_data, check_run
from vared2_mmaction.apis.check import check_config

KEY = 'train_dataloader.dataset'
NAMES = ('a', 'folder/b', 'c')
SAMPLE = {'type': 'SampleFrames', 'clip_len': 4}
DECORD = [{'type': 'DecordInit'}, SAMPLE, {'type': 'DecordDecode'}]
FRAMES = [SAMPLE, {'type': 'RawFrameDecode'}]


def check(dataset):
    check_data(Config({'dataset': dataset}).dataset, KEY, 'mmaction')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Videos, folders of frames and lists of both, named relative to the working folder."""
    register_all_modules(init_default_scope=False)
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        video = tmp_path / 'data' / 'videos' / f'{name}.mp4'
        video.parent.mkdir(parents=True, exist_ok=True)
        video.touch()
        (tmp_path / 'data' / 'frames' / name).mkdir(parents=True)
    write(tmp_path / 'data' / 'list.txt', (f'{name}.mp4 1' for name in NAMES))
    write(tmp_path / 'data' / 'bare.txt', (f'{name} 1' for name in NAMES))
    write(tmp_path / 'data' / 'frames.txt', (f'{name} 8 1' for name in NAMES))
    write(tmp_path / 'data' / 'offset.txt', (f'{name} 2 6 1' for name in NAMES))
    boxes = (f'{name},0902,0.1,0.1,0.5,0.5,3,0' for name in NAMES)
    write(tmp_path / 'data' / 'ava.csv', boxes)
    return tmp_path


def write(path, lines):
    path.write_text(''.join(f'{line}\n' for line in lines))


def video_set(**changes):
    return {
        'type': 'VideoDataset',
        'ann_file': 'data/list.txt',
        'data_prefix': {'video': 'data/videos'},
        'pipeline': DECORD,
        **changes,
    }


def frame_set(**changes):
    return video_set(
        **{
            'type': 'RawframeDataset',
            'ann_file': 'data/frames.txt',
            'data_prefix': {'img': 'data/frames'},
            'pipeline': FRAMES,
            **changes,
        }
    )


@DATASETS.register_module()
class OfAFolder(BaseActionDataset):
    """Takes no arguments but its own, and a folder for a list."""

    def __init__(self, ann_file, pipeline, test_mode=False):
        super().__init__(ann_file, pipeline, test_mode=test_mode)

    def load_data_list(self):
        names = sorted(os.listdir(self.ann_file))
        return [
            {'filename': f'{self.ann_file}/{name}', 'label': 0}
            for name in names
            if name.endswith('.mp4')
        ]


ROOT = {'data_root': 'data', 'ann_file': 'list.txt', 'data_prefix': {'video': 'videos'}}
RIGHT = {
    'plain': video_set(),
    'data_root': video_set(**ROOT),
    'data_root and absolute list': video_set(**{**ROOT, 'ann_file': 'list.txt'}),
    'names without suffix': video_set(ann_file='data/bare.txt'),
    'another delimiter': video_set(ann_file='data/comma.txt', delimiter=','),
    'many labels': video_set(ann_file='data/many.txt', multi_class=True, num_classes=5),
    'no labels': video_set(ann_file='data/unlabelled.txt'),
    'some of them': video_set(ann_file='data/half.txt', indices=[0, 2]),
    'OpenCV': video_set(pipeline=[{'type': 'OpenCVInit'}, SAMPLE, {'type': 'OpenCVDecode'}]),
    'PyAV': video_set(pipeline=[{'type': 'PyAVInit'}, SAMPLE, {'type': 'PyAVDecode'}]),
    'decoded once': video_set(pipeline=[{'type': 'DecodeOnce', 'transforms': DECORD}]),
    'repeated augmentation': video_set(type='RepeatAugDataset'),
    'a scope': video_set(type='mmaction.VideoDataset'),
    'frames': frame_set(),
    'frames, data_root': frame_set(
        data_root='data', ann_file='frames.txt', data_prefix={'img': 'frames'}
    ),
    'frames with offsets': frame_set(ann_file='data/offset.txt', with_offset=True),
    'AVA': frame_set(type='AVADataset', ann_file='data/ava.csv'),
    'AVA in videos': frame_set(
        type='AVADataset',
        ann_file='data/ava.csv',
        data_prefix={'img': 'data/videos'},
        use_frames=False,
        pipeline=[{'type': 'DecordInit'}, {'type': 'SampleAVAFrames', 'clip_len': 4}],
    ),
    'skeletons': {'type': 'PoseDataset', 'ann_file': 'data/pose.pkl', 'pipeline': []},
    'repeated': {'type': 'RepeatDataset', 'times': 2, 'dataset': video_set()},
    'a class of its own': {'type': 'OfAFolder', 'ann_file': 'data/videos', 'pipeline': DECORD},
    'several': {'type': 'ConcatDataset', 'datasets': [video_set(), video_set(**ROOT)]},
    'nested': {
        'type': 'RepeatDataset',
        'times': 2,
        'dataset': {'type': 'ConcatDataset', 'datasets': [video_set(), frame_set()]},
    },
}


@pytest.mark.parametrize('name', RIGHT)
def test_what_mmaction_loads_is_taken(name, folder):
    write(folder / 'data' / 'comma.txt', (f'{name}.mp4,1' for name in NAMES))
    write(folder / 'data' / 'many.txt', (f'{name}.mp4 1 3' for name in NAMES))
    write(folder / 'data' / 'unlabelled.txt', (f'{name}.mp4' for name in NAMES))
    write(folder / 'data' / 'half.txt', ['a.mp4 1', 'gone.mp4 1', 'c.mp4 1'])
    mmengine.dump([{'frame_dir': 'nowhere', 'total_frames': 3}], folder / 'data' / 'pose.pkl')
    check(RIGHT[name])
    with DefaultScope.overwrite_default_scope('mmaction'):
        assert len(DATASETS.build(Config(RIGHT[name])._cfg_dict))


@pytest.mark.parametrize('backend', ['petrel', 'http', 'memcached', 'lmdb'])
def test_what_is_elsewhere_is_believed(backend, folder):
    remote = {'video': 's3://bucket/videos'}
    steps = [{'type': 'DecordInit', 'io_backend': backend}, *DECORD[1:]]
    check(video_set(pipeline=steps, data_prefix=remote))
    check(video_set(pipeline=steps, data_prefix={'video': 'not/here'}))
    check(video_set(data_prefix={'video': 'http://host/videos'}))
    frames = [SAMPLE, {'type': 'RawFrameDecode', 'io_backend': backend}]
    check(frame_set(pipeline=frames, data_prefix={'img': 'not/here'}))


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_the_address_of_a_list_is_not_looked_for_on_the_disk(folder):
    handler = functools.partial(_Silent, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}/data'
        content = {'metainfo': {}, 'data_list': [{'img_path': 'x'}]}
        mmengine.dump(content, folder / 'data' / 'list.json')
        check({'type': BaseDataset, 'ann_file': f'{address}/list.json'})
        with pytest.raises(OSError, match=rf'{KEY}: .*404'):
            check({'type': BaseDataset, 'ann_file': f'{address}/gone.json'})
        server.shutdown()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'ann_file': 'no.txt'}, rf"\A{KEY}.ann_file='no.txt': no such annotation file\Z"),
        (
            {'data_root': 'data', 'ann_file': 'no.txt', 'data_prefix': {'video': 'videos'}},
            "ann_file='data/no.txt'",
        ),
        ({'data_root': 'gone', 'ann_file': 'list.txt'}, "ann_file='gone/list.txt'"),
        ({'data_prefix': {'video': 'gone'}}, r"3 of 3 videos .* first 'gone/a.mp4'; .*data/list"),
        ({**ROOT, 'data_prefix': {'video': 'gone'}}, "3 of 3 videos .* first 'data/gone/a.mp4'"),
        ({'ann_file': 'data/one.txt'}, "1 of 2 videos .* first 'data/videos/gone.mp4'"),
        ({'ann_file': 'data/bare_one.txt'}, "1 of 2 videos .* first 'data/videos/gone.mp4'"),
        (
            {
                'ann_file': 'data/bare.txt',
                'pipeline': [{'type': 'OpenCVInit'}, SAMPLE, {'type': 'OpenCVDecode'}],
            },
            "3 of 3 videos .* first 'data/videos/a'",
        ),
    ],
)
def test_what_is_missing_is_named(change, message, folder):
    write(folder / 'data' / 'one.txt', ['a.mp4 0', 'gone.mp4 1'])
    write(folder / 'data' / 'bare_one.txt', ['a 0', 'gone 1'])
    with pytest.raises(FileNotFoundError, match=message):
        check(video_set(**change))
    with pytest.raises(FileNotFoundError, match=message.replace(KEY, rf'{KEY}\.datasets\[1\]')):
        check({'type': 'ConcatDataset', 'datasets': [video_set(), video_set(**change)]})


def test_videos_that_a_class_of_its_own_lists_are_looked_for(folder, monkeypatch):
    monkeypatch.setattr(module.os.path, 'isfile', lambda path: not path.endswith('c.mp4'))
    with pytest.raises(FileNotFoundError, match="1 of 2 videos .* first 'data/videos/c.mp4'"):
        check({'type': 'OfAFolder', 'ann_file': 'data/videos', 'pipeline': DECORD})


def test_frames_and_proposals_that_are_missing_are_named(folder):
    with pytest.raises(FileNotFoundError, match=r"3 of 3 .* first 'gone/a'"):
        check(frame_set(data_prefix={'img': 'gone'}))
    with pytest.raises(FileNotFoundError, match=r"3 of 3 .* first 'gone/a'"):
        check(frame_set(type='AVADataset', ann_file='data/ava.csv', data_prefix={'img': 'gone'}))
    with pytest.raises(FileNotFoundError, match=f"{KEY}: .*'gone.pkl'"):
        check(frame_set(type='AVADataset', ann_file='data/ava.csv', proposal_file='gone.pkl'))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'ann_file': 'data/empty.txt'}, "ann_file='data/empty.txt': expected videos, found none"),
        ({'ann_file': 'data/words.txt'}, "ann_file='data/words.txt': VideoDataset fails: .*'x'"),
        ({'ann_file': 'data/three.txt'}, "ann_file='data/three.txt': VideoDataset fails: too many"),
        ({'type': 'VideoDatasett'}, f"{KEY}.type='VideoDatasett': expected a registered data set"),
        ({'delimeter': ','}, "VideoDataset fails: TypeError: .*'delimeter'"),
        ({'pipeline': [{'type': 'Nothing'}]}, 'VideoDataset fails: KeyError: Nothing is not in'),
    ],
)
def test_lists_that_are_none_are_named(change, message, folder):
    write(folder / 'data' / 'empty.txt', [])
    write(folder / 'data' / 'words.txt', ['a.mp4 x'])
    write(folder / 'data' / 'three.txt', ['a.mp4 1 2'])
    with pytest.raises(ValueError, match=message):
        check(video_set(**change))


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_labels_that_the_head_lacks_are_named(split, folder):
    last = 'c.mp4 0' if split == 'train' else 'c.mp4 -1'  # unlabelled
    write(folder / 'data' / 'many.txt', ['a.mp4 0', 'folder/b.mp4 1 2', last])
    dataset = video_set(ann_file='data/many.txt', multi_class=True, num_classes=3)
    parts = {f'{name}_dataloader': {'dataset': video_set()} for name in ('train', 'val', 'test')}
    parts[f'{split}_dataloader'] = {'dataset': {'type': 'RepeatDataset', 'dataset': dataset}}
    model = {'type': 'Recognizer2D', 'backbone': {'type': 'ResNet', 'depth': 18}}
    for head in ({}, {'num_classes': 3}, {'type': 'VARED2Head', 'head': {'num_classes': 3}}):
        check_run(Config({'model': {**model, 'cls_head': head}, **parts}), split)
    for head in ({'num_classes': '3'}, {'type': 'VARED2Head', 'head': {'num_classes': '3'}}):
        with pytest.raises(ValueError, match="num_classes='3': expected a whole number from 1 on"):
            check_run(Config({'model': {**model, 'cls_head': head}, **parts}), split)
    for head in ({'num_classes': 2}, {'type': 'VARED2Head', 'head': {'num_classes': 2}}):
        named = (
            rf"{split}_dataloader.*'data/many.txt'.*b.mp4' has the label \[1, 2\].*num_classes=2"
        )
        with pytest.raises(ValueError, match=named):
            check_run(Config({'model': {**model, 'cls_head': head}, **parts}), split)


@pytest.mark.parametrize('lines', [['a.mp4 0', 'c.mp4'], ['a.mp4 0', 'c.mp4 -1']])
def test_videos_to_train_on_have_labels(lines, folder):
    write(folder / 'data' / 'some.txt', lines)
    dataset = {'dataset': video_set(ann_file='data/some.txt')}
    parts = {'train_dataloader': dataset, 'test_dataloader': dataset}
    model = {'type': 'Recognizer2D', 'backbone': {'type': 'ResNet', 'depth': 18}}
    cfg = Config({'model': {**model, 'cls_head': {'num_classes': 2}}, **parts})
    check_run(cfg, 'test')
    with pytest.raises(
        ValueError, match=r"train_dataloader.*c.mp4' has the label -1; expected 0 or"
    ):
        check_run(cfg, 'train')


def test_long_lists_are_sampled(folder, monkeypatch):
    write(folder / 'data' / 'long.txt', (f'{i}.mp4 1' for i in range(1000)))
    looked_for = []
    monkeypatch.setattr(module, '_MOST_FILES_LOOKED_FOR', 100)
    monkeypatch.setattr(module.os.path, 'isfile', lambda path: looked_for.append(path) or True)
    check(video_set(ann_file='data/long.txt'))
    videos = [path for path in looked_for if path.endswith('.mp4')]
    assert len(videos) == 100
    assert np.diff([int(path.split('/')[-1][:-4]) for path in videos]).tolist() == [10] * 99


def test_a_config_without_data_is_named(folder):
    model = {'type': 'Recognizer2D', 'backbone': {'type': 'ResNet', 'depth': 18}}
    loaders = {f'{split}_dataloader': {'dataset': video_set()} for split in ('train', 'test')}
    check_run(Config({'model': model, **loaders}), 'train', 'val', 'test')
    for split in ('train', 'test'):
        with pytest.raises(ValueError, match=f'config has no {split}_dataloader'):
            check_run(Config({'model': model}), split)
    with pytest.raises(ValueError, match=r'model=None: expected the config of a network'):
        check_run(Config(loaders))
    for elsewhere in ('torchvision.resnet50', 'timm.swin', 'mmpretrain.ResNet'):
        check_config(Config({'model': {**model, 'backbone': {'type': elsewhere}}}))
