# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Samples and videos are brought together, or the sample and the key that do not fit are named."""

import numpy as np
import pytest
import torch

from policy_report.videos import Source, label_indices, read_videos

from .predictions import sample, videos

SCORES = [0.2, 0.7, 0.1]
A, B = Source('a.mp4', (1,)), Source('b.mp4', (0,))


def test_columns():
    samples = [
        sample(1, SCORES, 0.5, policy=((0, 0), (1, 2)), views=3),
        sample(0, SCORES, 0.75, policy=((2, 0), (1, 0)), views=1),
    ]
    found = read_videos(samples, [A, B])
    assert len(found) == 2
    assert (found.num_classes, found.views) == (3, 4)
    assert found.predicted.tolist() == [1, 1]
    assert found.correct.tolist() == [1, 0]
    np.testing.assert_allclose(found.score, [0.7, 0.7], rtol=1e-6)
    np.testing.assert_allclose(found.compute, [[0.5, 5, 0.1], [0.75, 7.5, 0.1]])
    assert found.ratio.tolist() == [0.5, 0.75]
    # Shares are those of views, not of videos.
    assert found.chosen.tolist() == [
        [[0.75, 0, 0.25, 0], [1, 0, 0, 0]],
        [[0, 1, 0, 0], [0.25, 0, 0.75, 0]],
    ]


def test_one_of_several_labels_suffices():
    found = videos([([0, 2], 2, 0.5), ([0, 2], 1, 0.5), ([], 1, 0.5), (-1, 1, 0.5)])
    assert found.correct.tolist() == [1, 0, -1, -1]


@pytest.mark.parametrize(
    ('label', 'expected'),
    [
        (2, (2,)),
        (torch.tensor([2]), (2,)),
        (torch.tensor([4, 0]), (0, 4)),
        (torch.tensor([1.0, 0, 0, 1, 0]), (0, 3)),
        (torch.zeros(5), ()),
        (np.array([0, 0, 1, 0, 0]), (2,)),
        (-1, ()),
        ([-1], ()),
    ],
)
def test_labels_are_numbers_or_a_vector(label, expected):
    assert label_indices(label, 5) == expected


def test_a_single_class_is_no_vector():
    assert label_indices(torch.tensor([0]), 1) == (0,)


@pytest.mark.parametrize('key', ['policy', 'compute_ratio', 'compute_gmacs', 'overhead_gmacs'])
def test_predictions_of_a_stock_head_are_named(key):
    lacking = sample(1, SCORES, 0.5)
    del lacking[key]
    with pytest.raises(ValueError, match=rf"sample 0 \('a.mp4'\) lacks '{key}': .*VARED2 head"):
        read_videos([lacking], [A])


@pytest.mark.parametrize('key', ['pred_score', 'gt_label'])
def test_predictions_of_something_else_are_named(key):
    lacking = sample(1, SCORES, 0.5)
    del lacking[key]
    with pytest.raises(ValueError, match=f"lacks '{key}': expected the predictions of a recogn"):
        read_videos([lacking], [A])


def test_numbers_of_predictions_and_videos_must_agree():
    with pytest.raises(ValueError, match='1 predictions, but the data set has 2 videos'):
        read_videos([sample(1, SCORES, 0.5)], [A, B])


def test_predictions_in_another_order_are_noticed():
    samples = [sample(0, SCORES, 0.5), sample(1, SCORES, 0.5)]
    with pytest.raises(ValueError, match=r"'a.mp4'.*gt_label says \[0\], the data set \[1\]"):
        read_videos(samples, [A, B])


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'policy': torch.zeros(1, 2)}, r'policy is float32 of shape \(1, 2\); expected integers'),
        ({'policy': torch.zeros(1, 2, 2)}, 'policy is float32'),
        ({'policy': torch.zeros(0, 2, 2, dtype=int)}, r'policy is int64 of shape \(0, 2, 2\)'),
        ({'policy': torch.zeros(1, 3, 2, dtype=int)}, r'expected integers of shape \(views, 2, 2'),
        ({'policy': torch.full((1, 2, 2), 4)}, 'policy has options from 4 to 4; expected 0 to 3'),
        ({'policy': torch.full((1, 2, 2), -1)}, 'policy has options from -1 to -1'),
        ({'compute_ratio': 1.5}, 'compute_ratio is 1.5; expected a share'),
        ({'compute_gmacs': float('nan')}, 'compute_gmacs is nan; expected a number'),
        ({'pred_score': torch.zeros(4)}, r'pred_score has \(4,\); expected \(3,\)'),
        ({'pred_score': torch.tensor([float('inf'), 0, 0])}, 'numbers that are not finite'),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    good, bad = sample(1, SCORES, 0.5), {**sample(0, SCORES, 0.5), **changes}
    with pytest.raises(ValueError, match=r"^sample 1 \('b.mp4'\): .*" + message):
        read_videos([good, bad], [A, B])


def test_a_label_beyond_the_classes_is_named():
    with pytest.raises(ValueError, match='label 3, expected less than the 3 classes'):
        read_videos([sample(3, SCORES, 0.5)], [Source('a.mp4', (3,))])
