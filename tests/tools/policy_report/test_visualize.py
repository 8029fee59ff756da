# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""tools/visualize_policy.py on dumps of real tests, and what it refuses."""

import json
import pickle
import re
from pathlib import Path

import cv2
import mmengine
import numpy as np
import pytest
import torch
from mmaction.registry import DATASETS, MODELS
from mmaction.utils import register_all_modules
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import DumpResults, Evaluator

from policy_report import visualize
from vared2_mmaction.models.policy import force_policies

from ...loading import load_tool

ROOT = Path(__file__).resolve().parents[3]
FIGURES = ['categories.png', 'compute.png', 'options.png']
LAYERS = 16


def small_config(videos):
    """The demo's config with few channels, on the tiny video set."""
    cfg = Config.fromfile(ROOT / 'configs' / 'demo' / 'vared2_r2plus1d.py')
    cfg.model.backbone.dynamic = {}
    cfg.merge_from_dict(
        {
            'model.backbone.base_channels': 4,
            'model.cls_head.in_channels': 32,
            'test_dataloader.dataset.ann_file': str(videos / 'test.txt'),
            'test_dataloader.dataset.data_prefix.video': str(videos),
        }
    )
    return cfg


def dump_test(cfg, path):
    """Tests as MMEngine's test loop does, with another random policy for every video."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    register_all_modules()
    model = MODELS.build(cfg.model).eval()
    data = pseudo_collate(list(DATASETS.build(cfg.test_dataloader.dataset)))
    evaluator = Evaluator([DumpResults(str(path))])
    policy = torch.randint(3, (len(data['inputs']), LAYERS, 2))
    with torch.no_grad(), force_policies(model, policy):
        samples = model.test_step(data)
    evaluator.process(samples, data)
    evaluator.evaluate(len(samples))


@pytest.fixture(scope='module')
def project(videos, tmp_path_factory):
    """A folder with config.py and dump.pkl of its test."""
    folder = tmp_path_factory.mktemp('visualize')
    cfg = small_config(videos)
    cfg.dump(folder / 'config.py')
    dump_test(cfg, folder / 'dump.pkl')
    ratios = [sample['compute_ratio'] for sample in mmengine.load(folder / 'dump.pkl')]
    assert len(set(ratios)) == 3
    return folder


@pytest.fixture
def run(project, tmp_path):
    tool = load_tool('visualize_policy')

    def run(*options, dump='dump.pkl', config='config.py'):
        paths = [str(project / dump), str(project / config)]
        tool.main([*paths, '--out', str(tmp_path / 'out'), *options])
        return tmp_path / 'out'

    return run


@pytest.fixture
def refused(run, capsys):
    """What the tool says to what it refuses."""

    def refused(*options, **files):
        with pytest.raises(SystemExit) as caught:
            run(*options, **files)
        assert caught.value.code == 2
        return capsys.readouterr().err

    return refused


def table(out):
    text = (out / 'index.html').read_text('utf-8')
    return json.loads(re.search(r'id="data">(.*?)</script>', text)[1])


def test_a_test_becomes_a_page(run, project, tmp_path, capsys):
    (tmp_path / 'labels.txt').write_text(''.join(f'class {i}\n' for i in range(14)))
    out = run('--labels', str(tmp_path / 'labels.txt'), '--frames', '3')
    assert sorted(path.name for path in out.iterdir()) == sorted([*FIGURES, 'index.html'])
    assert all(cv2.imread(str(out / name)).std() > 0 for name in FIGURES)
    samples = mmengine.load(project / 'dump.pkl')
    found = table(out)
    assert found['video'] == ['test0.mp4', 'test1.mp4', 'test2.mp4']
    assert found['labels'] == [[0], [1], [0]]
    assert found['ratio'] == pytest.approx([s['compute_ratio'] for s in samples], abs=1e-6)
    assert found['predicted'] == [int(s['pred_score'].argmax()) for s in samples]
    text = (out / 'index.html').read_text('utf-8')
    assert text.count('data:image/jpeg') == 4  # two categories, one of a single video
    assert '<h3>class 1</h3>' in text
    printed = capsys.readouterr().out
    assert 'missing' not in printed
    assert all(str(out / name) in printed for name in (*FIGURES, 'index.html'))


def test_the_study_has_what_the_network_decided(project):
    cfg = Config.fromfile(project / 'config.py')
    study = visualize.load_study(str(project / 'dump.pkl'), cfg)
    samples = mmengine.load(project / 'dump.pkl')
    policy = torch.cat([sample['policy'] for sample in samples])
    assert len(study.layers) == LAYERS
    assert set(study.layers.values()) == {(3, 3)}
    assert next(iter(study.layers)) == 'layer1.0.conv1.conv.conv_s'
    for option in range(3):
        expected = (policy == option).double().mean(0).numpy()
        assert study.videos.chosen[..., option] == pytest.approx(expected)
    assert study.classes == [str(i) for i in range(14)]


def test_missing_and_broken_videos_are_counted(run, project, videos, tmp_path, capsys):
    (tmp_path / 'list.txt').write_text(f'absent.mp4 0\n{tmp_path}/list.txt 1\ntest2.mp4 0\n')
    where = f'test_dataloader.dataset.ann_file={tmp_path}/list.txt'
    out = run('--cfg-options', where)
    assert "2 of the videos to show are missing or broken, first '" in capsys.readouterr().out
    text = (out / 'index.html').read_text('utf-8')
    assert 'absent.mp4</b><br>missing on disk' in text
    assert f'{tmp_path}/list.txt</b><br>cannot be read' in text
    assert text.count('data:image/jpeg') == 1


def test_without_categories_no_video_is_opened(run, project, tmp_path):
    (tmp_path / 'list.txt').write_text('a.mp4 0\nb.mp4 1\nc.mp4 0\n')
    out = run(
        *('--categories', '0'),
        *('--cfg-options', f'test_dataloader.dataset.ann_file={tmp_path}/list.txt'),
    )
    assert not (out / 'categories.png').exists()
    assert table(out)['video'] == ['a.mp4', 'b.mp4', 'c.mp4']


@pytest.mark.parametrize('wrapped', [False, True])
def test_many_labels_a_video(wrapped, project, tmp_path):
    (tmp_path / 'list.txt').write_text('a.mp4 0 3\nb.mp4 1\nc.mp4 13 2\n')
    cfg = Config.fromfile(project / 'config.py')
    cfg.test_dataloader.dataset.update(
        ann_file=str(tmp_path / 'list.txt'), multi_class=True, num_classes=14
    )
    if wrapped:
        one = cfg.test_dataloader.dataset
        cfg.test_dataloader.dataset = {'type': 'ConcatDataset', 'datasets': [one]}
    samples = mmengine.load(project / 'dump.pkl')
    for sample, labels in zip(samples, ([0, 3], [1], [2, 13]), strict=True):
        sample['gt_label'] = torch.zeros(14)
        sample['gt_label'][labels] = 1
    mmengine.dump(samples, tmp_path / 'dump.pkl')
    study = visualize.load_study(str(tmp_path / 'dump.pkl'), cfg)
    assert [source.labels for source in study.videos.sources] == [(0, 3), (1,), (2, 13)]
    files, _ = visualize.write_study(study, str(tmp_path / 'out'), 'many', number=0)
    assert table(tmp_path / 'out')['labels'] == [[0, 3], [1], [2, 13]]
    assert len(files) == 3


def test_folders_of_frames(project, tmp_path):
    for name in ('a', 'b', 'c'):
        (tmp_path / name).mkdir()
        for t in range(1, 4):
            cv2.imwrite(str(tmp_path / name / f'img_{t:05}.jpg'), np.zeros((16, 32, 3), np.uint8))
    (tmp_path / 'list.txt').write_text('a 3 0\nb 3 1\nc 3 0\n')
    cfg = Config.fromfile(project / 'config.py')
    cfg.test_dataloader.dataset = {
        'type': 'RawframeDataset',
        'data_root': str(tmp_path),
        'ann_file': 'list.txt',
        'data_prefix': {'img': ''},
        'pipeline': [{'type': 'SampleFrames', 'clip_len': 2}, {'type': 'RawFrameDecode'}],
    }
    study = visualize.load_study(str(project / 'dump.pkl'), cfg)
    _, absent = visualize.write_study(study, str(tmp_path / 'out'), 'frames')
    assert absent == []
    assert table(tmp_path / 'out')['video'] == ['a', 'b', 'c']
    assert (tmp_path / 'out' / 'index.html').read_text('utf-8').count('data:image/jpeg') == 4


def test_data_sets_of_something_else_are_named():
    class Poses(list):
        def get_data_info(self, index):
            return {'keypoint': None}

    with pytest.raises(ValueError, match=r"video 0 has \['keypoint'\]; expected filename or"):
        visualize.read_sources(Poses([1]))


def changed(project, name, change):
    samples = mmengine.load(project / 'dump.pkl')
    mmengine.dump(change(samples), project / name)
    return name


def test_dumps_that_do_not_belong_are_refused(refused, project):
    def without(key):
        return lambda samples: [{k: v for k, v in s.items() if k != key} for s in samples]

    stock = changed(project, 'stock.pkl', without('policy'))
    assert "lacks 'policy': expected the predictions of a VARED2 head" in refused(dump=stock)
    longer = changed(project, 'longer.pkl', lambda samples: samples * 2)
    message = refused(dump=longer)
    assert 'longer.pkl: 6 predictions, but the data set has 3 videos' in message
    fewer = without('nothing')

    def layers(samples):
        return [{**s, 'policy': s['policy'][:, 1:]} for s in fewer(samples)]

    message = refused(dump=changed(project, 'layers.pkl', layers))
    assert 'policy has 15 layers; expected the 16 of the config' in message


def test_options_that_a_layer_lacks_are_refused(refused, project):
    def fourth(samples):
        samples[1]['policy'][0, 2, 1] = 3
        return samples

    message = refused(dump=changed(project, 'fourth.pkl', fourth))
    assert (
        'policy has temporal option 3 in layer layer1.0.conv2.conv.conv_s, which has 3' in message
    )


def test_files_that_are_no_dumps_are_refused(refused, project):
    (project / 'cut.pkl').write_bytes((project / 'dump.pkl').read_bytes()[:-20])
    assert 'cut.pkl: expected what tools/test.py --dump writes' in refused(dump='cut.pkl')
    (project / 'evil.pkl').write_bytes(pickle.dumps([print]))
    assert 'it asks for builtins.print' in refused(dump='evil.pkl')
    assert "no.pkl': no such file" in refused(dump='no.pkl')
    assert "no.py': no such file" in refused(config='no.py')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--categories', '-1'], '--categories -1: expected 0 or more'),
        (['--frames', '0'], '--frames 0: expected at least 1'),
        (['--out', __file__], 'expected a folder, this is a file'),
        (['--labels', 'no.txt'], 'no.txt'),
        (['--labels', __file__], 'names, expected 14 classes'),
        (
            ['--cfg-options', 'test_dataloader.dataset.ann_file=no.txt'],
            "ann_file='no.txt': no such",
        ),
        (
            ['--cfg-options', 'test_dataloader.sampler.shuffle=True'],
            'sampler.shuffle=True: expected',
        ),
        (['--cfg-options', 'test_dataloader.dataset.pipeline=[]'], 'expected a step that decodes'),
    ],
)
def test_bad_options_are_named(refused, options, message):
    assert message in refused(*options)
