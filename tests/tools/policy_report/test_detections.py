# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Detections are measured against the annotation, or what does not fit it is named."""

import numpy as np
import pytest
import torch

from annotations.ava_format import Keyframe
from policy_report.detections import Detections, found_share
from policy_report.videos import DETECTION, read_videos

from .predictions import KEYFRAME, LEFT, RIGHT, SOURCES, detection, detections


def share(boxes, scores, keyframe=KEYFRAME):
    return found_share(keyframe, Detections(np.array(boxes), np.array(scores)))


def test_what_is_annotated_is_found():
    assert share([LEFT, RIGHT], [[0, 0.9, 0.1, 0.8], [0, 0.2, 0.3, 0.1]]) == 1
    assert share([RIGHT, LEFT], [[0, 0.2, 0.3, 0.1], [0, 0.9, 0.1, 0.8]]) == 1


def test_every_action_counts_once():
    assert share([LEFT, RIGHT], [[0, 0.9, 0.8, 0.1], [0, 0.2, 0.3, 0.1]]) == pytest.approx(2 / 3)
    assert share([LEFT, RIGHT], [[0, 0.9, 0.1, 0.8], [0, 0.3, 0.2, 0.1]]) == pytest.approx(2 / 3)


def test_only_the_order_of_scores_counts_and_not_the_background():
    scores = np.array([[9, 0.9, 0.1, 0.8], [9, 0.2, 0.3, 0.1]])
    assert share([LEFT, RIGHT], scores) == share([LEFT, RIGHT], scores / 100) == 1


def test_boxes_elsewhere_find_nothing():
    scores = [[0, 0.9, 0.1, 0.8], [0, 0.2, 0.3, 0.1]]
    narrow = (0.0, 0.0, 0.19, 1.0)  # less than half of LEFT
    assert share([narrow, RIGHT], scores) == pytest.approx(1 / 3)
    assert share([(0.0, 0.0, 0.21, 1.0), RIGHT], scores) == 1
    assert share(np.zeros((0, 4)), np.zeros((0, 4))) == 0


def test_the_box_that_overlaps_most_counts():
    near = (0.0, 0.0, 0.35, 1.0)
    right, wrong = [0, 0.9, 0.1, 0.8], [0, 0.1, 0.9, 0.1]
    keyframe = Keyframe('a.mp4', 7, np.array([LEFT]), [(1, 3)])
    assert share([near, LEFT], [wrong, right], keyframe) == 1
    assert share([near, LEFT], [right, wrong], keyframe) == 0.5


def test_one_action_in_one_box_is_top_1():
    generator = np.random.default_rng(0)
    keyframe = Keyframe('a.mp4', 7, np.array([LEFT]), [(2,)])
    for scores in generator.random((50, 1, 5)):
        assert share([LEFT], scores, keyframe) == (scores[0, 1:].argmax() + 1 == 2)


def test_columns():
    found = read_videos(detections(), SOURCES)
    assert found.num_classes == 4
    assert found.predicted.tolist() == [3, 3]  # of any box, without the background
    assert found.score.tolist() == pytest.approx([0.4, 0.4])
    assert found.correct.tolist() == [1, 0]
    assert found.ratio.tolist() == [0.5, 0.75]
    assert found.measure is DETECTION
    assert [len(one.boxes) for one in found.detections] == [2, 1]


def test_clips_without_predicted_boxes_are_background():
    changed = detections()
    changed[1] = detection('a.mp4', 8, np.zeros((0, 4)), np.zeros((0, 4)), 0.5)
    found = read_videos(changed, SOURCES)
    assert (found.score[1], found.correct[1]) == (0, 0)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'timestamp': 9}, "the prediction is of 'a.mp4,0009'; expected the dump of a test of"),
        ({'video_id': 'b.mp4'}, "the prediction is of 'b.mp4,0008'"),
        ({'pred_instances': {'bboxes': torch.zeros(1, 4)}}, "pred_instances lacks 'scores'"),
        (
            {'pred_instances': {'bboxes': torch.zeros(1, 5), 'scores': torch.zeros(1, 4)}},
            r'expected \(boxes, 4\) and \(boxes, 4\)',
        ),
        (
            {'pred_instances': {'bboxes': torch.zeros(1, 4), 'scores': torch.zeros(1, 3)}},
            r'scores of shape \(1, 3\)',
        ),
        (
            {'pred_instances': {'bboxes': torch.zeros(1, 4), 'scores': torch.full((1, 4), np.nan)}},
            'not finite',
        ),
    ],
)
def test_samples_of_something_else_are_named(changes, message):
    changed = detections()
    changed[1] |= changes
    with pytest.raises(ValueError, match=message) as caught:
        read_videos(changed, SOURCES)
    assert "sample 1 ('a.mp4 @ 8')" in str(caught.value)


@pytest.mark.parametrize('key', ['pred_instances', 'video_id', 'timestamp'])
def test_dumps_of_no_detector_are_named(key):
    changed = detections()
    del changed[0][key]
    with pytest.raises(ValueError, match=f'lacks {key!r}: expected the predictions of a detector'):
        read_videos(changed, SOURCES)
    changed = detections()
    del changed[0]['policy']
    with pytest.raises(ValueError, match=r"lacks 'policy': .*VARED2AVARoIHead"):
        read_videos(changed, SOURCES)


def test_actions_that_the_network_lacks_are_named():
    source = SOURCES[0]._replace(keyframe=KEYFRAME._replace(actions=[(1, 3), (4,)]))
    with pytest.raises(ValueError, match='action 4 is annotated, expected less than the 4 classes'):
        read_videos(detections()[:1], [source])
