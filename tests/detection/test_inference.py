# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Boxes of one video: scores are those of a test, and what is wrong is named."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmaction.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData

from commands.people import find_people
from synthetic.moving_boxes import ACTIONS
from vared2_mmaction import static_cost
from vared2_mmaction.apis import detect, load_detector

from ..networks import change, write_network
from ..videos import HEIGHT, WIDTH, write_video
from .moving import CONFIG

BOX = (4, 14, 30, 40)


@pytest.fixture(scope='module')
def detector(project):
    return load_detector(project.config, project.checkpoint, 'cpu')


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / 'video.mp4', 24)


def test_agrees_with_a_test(project, detector):
    dataset = DATASETS.build(Config.fromfile(project.config).test_dataloader.dataset)
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        with torch.no_grad():
            (sample,) = detector.model.test_step(pseudo_collate([dataset[index]]))
        frame = info['timestamp'] - 1  # counted from 1
        found = detect(detector, info['filename'], info['proposals'] * 64, frame / 25 + 0.001)
        assert found.frame == frame
        for names, scores, expected in zip(
            found.labels, found.scores, sample.pred_instances.scores, strict=True
        ):
            expected = dict(zip(ACTIONS, expected[1:].tolist(), strict=True))
            assert dict(zip(names, scores, strict=True)) == pytest.approx(expected, abs=1e-5)
            assert list(scores) == sorted(scores, reverse=True)
        assert found.compute_ratio == pytest.approx(sample.compute_ratio)
        assert (found.policy == sample.policy).all()


def test_compute_is_that_of_the_static_backbone(project, detector, video):
    found = detect(detector, video)
    plain = load_detector(project.config, project.checkpoint, 'cpu', optimized=False)
    static = static_cost(plain.model.get_submodule('backbone'), (1, 3, 8, 48, 48)) / 1e9
    assert found.static_gmacs == pytest.approx(static)
    assert len(found.layers) == found.policy.shape[1] > 1


def test_frames_are_what_the_network_sees(detector, video):
    found = detect(detector, video)
    assert found.frames.shape == (1, 8, 48, 48, 3)
    assert found.frames.dtype == torch.uint8
    columns = [  # the square moves by 3 pixels of 64 from frame to frame
        np.flatnonzero(frame[..., 0].numpy().max(0) > 150).mean() for frame in found.frames[0]
    ]
    np.testing.assert_allclose(np.diff(columns), 3 * 48 / WIDTH, atol=1)


def test_without_boxes_the_whole_frame_is_one(detector, video):
    found = detect(detector, video)
    whole = detect(detector, video, [(0, 0, WIDTH, HEIGHT)])
    assert found.boxes.tolist() == [[0, 0, WIDTH, HEIGHT]]
    assert found.scores == whole.scores
    assert detect(detector, video, [BOX]).scores != whole.scores


def test_boxes_do_not_see_each_other(detector, video):
    other = (30, 2, 64, 48)
    found = detect(detector, video, [BOX, other])
    for number, box in enumerate((BOX, other)):
        assert found.scores[number] == pytest.approx(detect(detector, video, [box]).scores[0])


@pytest.mark.parametrize('frames', [1, 3, 400])
@pytest.mark.parametrize('size', [(33, 49), (90, 160), (426, 240)])
def test_any_length_and_size(frames, size, detector, tmp_path):
    found = detect(detector, write_video(tmp_path / 'odd.mp4', frames, size=size))
    assert found.frames.shape == (1, 8, 48, 48, 3)
    assert (found.video.width, found.video.height) == pytest.approx(size, abs=1)  # even, if odd
    assert found.boxes.tolist() == [[0, 0, found.video.width, found.video.height]]
    assert found.frame == frames // 2


def test_configs_of_raw_frames_decode_videos(project, detector, video):
    raw = """
steps = [dict(type='RawFrameDecode') if s.type == 'DecordDecode' else s
         for s in _base_.test_pipeline if s.type != 'DecordInit']
test_dataloader = dict(dataset=dict(pipeline=steps))
"""
    other = load_detector(change(project.config, raw), project.checkpoint, 'cpu')
    assert detect(other, video, [BOX]).scores == detect(detector, video, [BOX]).scores


def test_names(project, detector, video, tmp_path):
    assert set(detect(detector, video).labels[0]) == set(ACTIONS)
    missing = "test_dataloader = dict(dataset=dict(label_file='gone.pbtxt'))"
    numbered = load_detector(change(project.config, missing), project.checkpoint)
    assert set(detect(numbered, video).labels[0]) == set('12345678')
    (tmp_path / 'names.txt').write_text('\n'.join('abcdefgh'))
    named = load_detector(
        project.config, project.checkpoint, label_file=str(tmp_path / 'names.txt')
    )
    assert set(detect(named, video).labels[0]) == set('abcdefgh')


SCOPED = (
    'steps = [dict(step, type=f"mmaction.{step[\'type\']}") for step in _base_.test_pipeline]\n'
    'test_dataloader = dict(dataset=dict(pipeline=steps))'
)


def test_steps_may_have_a_scope(project, detector, video):
    scoped = load_detector(change(project.config, SCOPED), project.checkpoint, 'cpu')
    assert detect(scoped, video).scores == detect(detector, video).scores


@pytest.mark.parametrize(
    ('boxes', 'timestamp', 'message'),
    [
        ([], None, 'boxes: expected at least one'),
        ([BOX, (0, 0, 65, 48)], None, r'boxes\[1\]: expected 0 <= x1 < x2 <= 64'),
        ([BOX], 2.1, 'TIMESTAMP=2.1: expected 0 to 2 seconds'),
    ],
)
def test_boxes_and_times_outside_are_named(boxes, timestamp, message, detector, video):
    with pytest.raises(ValueError, match=message):
        detect(detector, video, boxes, timestamp)


UNSAMPLED = 'test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline[2:]))'


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        ("model = dict(roi_head=dict(type='AVARoIHead'))", 'needs VARED2AVARoIHead'),
        ('model = dict(neck=None)', "needs neck=dict.type='mmaction.SoftModulationGateNeck'"),
        (UNSAMPLED, 'expected SampleAVAFrames, found'),
        ('test_dataloader = dict(_delete_=True)', 'lacks test_dataloader.dataset.pipeline'),
        ('model = dict(roi_head=dict(bbox_head=dict(num_classes=5)))', 'found action 8'),
    ],
)
def test_bad_configs_are_named(more, message, project):
    with pytest.raises(ValueError, match=message):
        load_detector(change(project.config, more), project.checkpoint)


def test_static_networks_are_refused(project):
    config = CONFIG.with_name(CONFIG.name.replace('vared2', 'static'))
    with pytest.raises(ValueError, match=r'network is static \(backbone ResNet3d\)'):
        load_detector(str(config), project.checkpoint)


def test_recognizers_are_no_detectors(tmp_path):
    config, checkpoint = write_network(tmp_path)
    with pytest.raises(ValueError, match="model.type='Recognizer3D', expected a detector"):
        load_detector(config, checkpoint)


def test_missing_checkpoints_are_named_before_anything_is_built(project, monkeypatch):
    monkeypatch.setattr('vared2_mmaction.apis.detection.load_model', None)
    with pytest.raises(FileNotFoundError, match="CHECKPOINT='gone.pth'"):
        load_detector(project.config, 'gone.pth')


@pytest.fixture
def people(monkeypatch, project):
    """A detector of people that finds what it is told to; notes the images that it is shown."""
    seen = []

    def find(boxes, labels, scores):
        values = {'bboxes': boxes, 'labels': labels, 'scores': scores}
        instances = InstanceData(**{key: torch.tensor(value) for key, value in values.items()})
        sample = SimpleNamespace(pred_instances=instances)
        monkeypatch.setattr('mmdet.apis.init_detector', lambda *_, **kwargs: kwargs)
        monkeypatch.setattr(
            'mmdet.apis.inference_detector', lambda model, image: seen.append(image) or sample
        )
        return seen

    return find


def test_people_are_found_by_a_detector(people, project, video, capsys):
    boxes = [[5.0, 6, 20, 30], [0, 0, 9, 9], [1, 1, 5, 5], [-3, 40, 70, 60]]
    seen = people(boxes, [0, 1, 0, 0], [0.99, 0.99, 0.5, 0.95])
    found = find_people(project.config, project.checkpoint, video, 1.0)
    assert found.tolist() == [[5, 6, 20, 30], [0, 40, WIDTH, HEIGHT]]
    assert capsys.readouterr().out == ''
    (image,) = seen
    assert image.shape == (HEIGHT, WIDTH, 3)
    blue, green, red = image.reshape(-1, 3).max(0).astype(int)
    assert red > green > blue  # mmdet's colour order; the square is (240, 200, 40)


def test_detectors_that_fail_or_find_nobody_are_named(people, project, video, tmp_path):
    people([[5.0, 6, 20, 30]], [0], [0.5])
    with pytest.raises(ValueError, match='DETECTOR=.*finds nobody'):
        find_people(project.config, project.checkpoint, video)
    with pytest.raises(FileNotFoundError, match="DETECTOR='gone.py'"):
        find_people('gone.py', project.checkpoint, video)
    with pytest.raises(FileNotFoundError, match="CHECKPOINT='gone.pth'"):
        find_people(project.config, 'gone.pth', video)


def test_configs_of_no_detector_of_people_are_named(project, video, tmp_path):
    path = Path(tmp_path / 'broken.pkl')
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match=r'DETECTOR=.*broken\.pkl.* fails'):
        find_people(str(path), project.checkpoint, video)
