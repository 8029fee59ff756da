# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Videos of the user's in place of the generated ones."""

import json
from pathlib import Path

import pytest

from commands.check_data import check_run
from studies.compare import decoded_videos
from studies.footage import Footage, test_facts
from studies.match import init_scope
from studies.study import Run, Study, set_data

CONFIGS = Path(__file__).parents[3] / 'configs' / 'study'


@pytest.fixture
def footage(videos):
    return Footage(videos)


def test_what_lists_say(footage, tmp_path):
    assert footage.entries('test') == [('test0.mp4', 0), ('test1.mp4', 1), ('test2.mp4', 0)]
    assert footage.classes == ['0', '1']
    facts = test_facts(footage.root)
    assert facts['test1.mp4'] == {'label': 1, 'class_name': '1', 'still': False}
    of_meta = {'train/a.mp4': {'label': 0}, 'test/b.mp4': {'label': 1}}
    for name in ('train', 'test'):
        (tmp_path / f'{name}.txt').write_text('mine.mp4 0')
    (tmp_path / 'meta.json').write_text('{"author": "me"}')
    assert list(test_facts(tmp_path)) == ['mine.mp4']
    (tmp_path / 'meta.json').write_text(json.dumps({'videos': of_meta}))
    assert test_facts(tmp_path) == {'test/b.mp4': {'label': 1}}


def test_settings_know_the_lists_and_not_the_place(footage, tmp_path):
    found = []
    for place in ('one', 'two'):
        root = tmp_path / place / 'mine'
        (root / 'videos').mkdir(parents=True)
        for split in ('train', 'test'):
            (root / f'{split}.txt').write_text((footage.root / f'{split}.txt').read_text())
        found.append(Footage(root).settings())
    assert found[0] == found[1]
    assert found[0]['name'] == 'mine'
    (root / 'test.txt').write_text('test0.mp4 1\n')
    changed = Footage(root).settings()
    assert {key for key in changed if changed[key] != found[0][key]} == {'lists', 'test'}


def test_clips_span_videos_of_any_length(footage, videos):
    cfg = Study(CONFIGS, footage).config(Run('static', 0))
    set_data(cfg, str(videos), 0)
    check_run(cfg, 'train', 'test')
    assert cfg.model.cls_head.num_classes == 2
    init_scope(cfg)
    clips = decoded_videos(cfg, 3)
    assert [tuple(clip['inputs'][0].shape) for clip in clips] == [(1, 3, 32, 32, 32)] * 3
    cfg.test_dataloader = cfg.train_dataloader
    assert decoded_videos(cfg, 1)[0]['inputs'][0].shape == (1, 3, 32, 32, 32)


@pytest.mark.parametrize(
    ('lists', 'named'),
    [
        ({'train.txt': 'a.mp4 0'}, 'expected a folder with test.txt'),
        ({'train.txt': 'a.mp4 0', 'test.txt': ''}, 'test.txt names no video'),
        ({'train.txt': 'a.mp4 0', 'test.txt': 'b.mp4 0\nb.mp4 0'}, "test.txt names 'b.mp4' twice"),
        (
            {'train.txt': 'a.mp4 2', 'test.txt': 'b.mp4 0', 'classes.txt': 'wave\nclap'},
            'classes.txt: expected a name for each label, to 2; got 2',
        ),
        ({'train.txt': 'a.mp4', 'test.txt': 'a.mp4 0'}, 'lines of "path label"'),
    ],
)
def test_mistakes(lists, named, tmp_path):
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=named):
        Footage(tmp_path)


def test_names_may_begin_with_a_byte_order_mark(tmp_path):
    for name, text in (('train', 'a.mp4 0'), ('test', 'b.mp4 0')):
        (tmp_path / f'{name}.txt').write_text(text)
    (tmp_path / 'classes.txt').write_text('läuft\n', 'utf-8-sig')
    assert Footage(tmp_path).classes == ['läuft']
