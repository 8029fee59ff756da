# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The moving-boxes set is what its annotation says, and MMAction2 reads it."""

import pickle
from pathlib import Path

import decord
import numpy as np
import pytest
from mmaction.evaluation import read_labelmap
from mmaction.evaluation.metrics import AVAMetric
from mmaction.registry import DATASETS
from mmaction.utils import register_all_modules

from synthetic import moving_boxes, scenes
from synthetic.moving_boxes import ACTIONS, MovingBoxes, make_moving_boxes, render

from ...loading import load_tool

SMALL = MovingBoxes(train=40, val=2, test=3, size=64, frames=12)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp('data') / 'moving_boxes'
    assert make_moving_boxes(out, SMALL, workers=2) == 45
    return out


def dataset(out, split='train'):
    register_all_modules()
    notes = out / 'annotations'
    steps = [
        dict(type='DecordInit', num_threads=1),
        dict(type='SampleAVAFrames', clip_len=4, frame_interval=3, test_mode=True),
        dict(type='DecordDecode'),
        dict(type='Resize', scale=(32, 32), keep_ratio=False),
        dict(type='FormatShape', input_format='NCTHW', collapse=True),
        dict(type='PackActionInputs'),
    ]
    return DATASETS.build(
        dict(
            type='AVADataset',
            ann_file=str(notes / f'{split}.csv'),
            exclude_file=str(notes / f'{split}_excluded_timestamps.csv'),
            label_file=str(notes / 'actions.pbtxt'),
            proposal_file=str(notes / f'{split}_proposals.pkl'),
            data_prefix=dict(img=str(out)),
            pipeline=steps,
            num_classes=1 + len(ACTIONS),
            use_frames=False,
            fps=1,
            timestamp_start=1,
            start_index=0,
            test_mode=True,
        )
    )


def contents(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob('*') if p.is_file()}


def test_files_depend_on_the_arguments_alone(data, tmp_path):
    make_moving_boxes(tmp_path / 'again', SMALL, workers=1)
    assert contents(tmp_path / 'again') == contents(data)
    assert make_moving_boxes(data, SMALL) == 0
    with pytest.raises(ValueError, match='made with other arguments'):
        make_moving_boxes(data, MovingBoxes(seed=1))
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.tex').write_text('')
    with pytest.raises(ValueError, match='expected a new folder'):
        make_moving_boxes(tmp_path / 'mine', SMALL)


def test_mmaction_reads_what_was_drawn(data):
    samples = {}
    for packed in dataset(data):
        sample = packed['data_samples']
        assert packed['inputs'].shape == (3, 4, 32, 32)
        samples[sample.video_id] = sample
    videos = [render(SMALL, 'train', i) for i in range(SMALL.train)]
    shown = {video.keyframe.video: video.keyframe for video in videos if not video.excluded}
    assert set(samples) == set(shown)
    assert len(shown) < len(videos)  # some keyframes are excluded
    for name, frame in shown.items():
        found = samples[name].gt_instances
        np.testing.assert_allclose(found.bboxes, 32 * frame.boxes, atol=0.01)
        for labels, actions in zip(found.labels, frame.actions, strict=True):
            assert labels.nonzero().flatten().tolist() == sorted(actions)
    with open(data / 'annotations' / 'actions.pbtxt') as file:
        names, _ = read_labelmap(file)
    assert [(n['id'], n['name']) for n in names] == list(enumerate(ACTIONS, 1))


def test_videos_hold_the_rendered_frames(data):
    for index in range(3):
        video = render(SMALL, 'train', index)
        reader = decord.VideoReader(str(data / video.keyframe.video), num_threads=1)
        decoded = reader.get_batch(range(len(reader))).asnumpy()[..., ::-1].astype(int)
        assert decoded.shape == video.frames.shape
        assert np.abs(decoded - video.frames).mean() < 8


def test_subjects_are_in_their_boxes(monkeypatch):
    monkeypatch.setattr(scenes, 'NOISE', 0.0)
    for index in range(20):
        video = render(SMALL, 'train', index)
        rng = np.random.default_rng((SMALL.seed, 0, index))
        background, _ = scenes.draw_background(rng, SMALL.size)
        keyframe = video.frames[video.keyframe.timestamp - 1].astype(float)
        changed = np.abs(keyframe - background.clip(0, 255)).max(-1) > 8
        assert changed.any()
        inside = np.zeros_like(changed)
        for x1, y1, x2, y2 in np.rint(video.keyframe.boxes * SMALL.size).astype(int):
            assert changed[y1:y2, x1:x2].mean() > 0.15
            inside[max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1] = True
        assert not (changed & ~inside).any()


def test_proposals_are_near_the_boxes(data):
    proposals = pickle.loads((data / 'annotations' / 'train_proposals.pkl').read_bytes())
    for index in range(SMALL.train):
        frame = render(SMALL, 'train', index).keyframe
        found = proposals[frame.key]
        assert found.shape[1] == 5
        assert found.min() >= 0
        assert found.max() <= 1
        for box, proposal in zip(frame.boxes, found, strict=False):
            assert moving_boxes._overlap(box, proposal[:4]) > 0.5
            assert proposal[4] >= 0.9


def test_the_annotation_itself_is_a_perfect_detection(data):
    """Boxes and labels mean to ``AVAMetric`` what they mean here."""
    notes = data / 'annotations'
    metric = AVAMetric(
        str(notes / 'train.csv'),
        str(notes / 'train_excluded_timestamps.csv'),
        str(notes / 'actions.pbtxt'),
        num_classes=1 + len(ACTIONS),
    )
    for packed in dataset(data):
        sample = packed['data_samples']
        boxes = dict(bboxes=sample.gt_instances.bboxes / 32, scores=sample.gt_instances.labels)
        meta = dict(video_id=sample.video_id, timestamp=sample.timestamp)
        metric.process(None, [dict(pred_instances=boxes, **meta)])
    assert metric.evaluate(len(metric.results))['mAP/overall'] == pytest.approx(1.0)


def test_command(tmp_path, capsys):
    tool = load_tool('make_moving_boxes')
    out = str(tmp_path / 'set')
    small = ['--train=2', '--val=1', '--test=1', '--size=32', '--frames=8', '--workers=1']
    tool.main([out, *small])
    assert len(list(Path(out).rglob('*.mp4'))) == 4
    for wrong in ('--size=40', '--frames=2', '--train=0', '--workers=0'):
        with pytest.raises(SystemExit):
            tool.main([out, wrong])
        assert f'{wrong.partition("=")[0]}: expected' in capsys.readouterr().err
