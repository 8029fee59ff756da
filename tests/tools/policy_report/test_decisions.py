# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The figure of a video: bars are the shares computed, and tiles are its frames."""

import itertools

import numpy as np
import pytest

from policy_report import decisions

LAYERS = ('layer1.conv1', 'layer1.conv2', 'layer2.conv1')
POLICY = np.array([[[0, 2], [1, 0], [2, 1]], [[0, 0], [1, 0], [0, 1]]])
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 6, 4, 5, 3), np.uint8)


def test_shares_are_means_over_views():
    expected = [[1, (1 / 4 + 1) / 2], [1 / 2, 1], [(1 / 4 + 1) / 2, 1 / 2]]
    assert decisions.computed_shares(POLICY).tolist() == expected
    assert decisions.computed_shares(POLICY[:1]).tolist() == [
        [1, 1 / 4],
        [1 / 2, 1],
        [1 / 4, 1 / 2],
    ]


def parts(figure):
    tiles = [axis for axis in figure.axes if axis.images]
    bars = [axis for axis in figure.axes if axis.patches]
    return tiles, bars


@pytest.mark.parametrize('views', [1, 2])
def test_bars_are_as_long_as_the_shares(views):
    figure = decisions.draw(FRAMES[:views], LAYERS, POLICY[:views], 'title')
    _, axes = parts(figure)
    shares = decisions.computed_shares(POLICY[:views])
    for axis, name, column in zip(axes, ('channels', 'frames'), shares.T, strict=True):
        assert axis.get_title().startswith(name)
        assert ('mean of 2 views' in axis.get_title()) == (views == 2)
        background, bars = axis.containers
        assert [bar.get_width() for bar in background] == [1, 1, 1]
        assert [bar.get_width() for bar in bars] == column.tolist()
        assert axis.yaxis_inverted()  # the first layer is on top
    assert [label.get_text() for label in axes[0].get_yticklabels()] == list(LAYERS)


def test_tiles_are_frames_spread_over_all_views():
    tiles, _ = parts(decisions.draw(FRAMES, LAYERS, POLICY, '', most=4))
    numbers = [0, 4, 7, 11]  # of 12
    assert len(tiles) == 4
    for tile, number in zip(tiles, numbers, strict=True):
        assert (tile.images[0].get_array() == FRAMES.reshape(12, 4, 5, 3)[number]).all()
        view, t = divmod(number, 6)
        assert tile.get_title() == f'view {view + 1}, frame {t + 1} of 6'
    few, _ = parts(decisions.draw(FRAMES[:1, :1], LAYERS, POLICY[:1], ''))
    assert [tile.get_title() for tile in few] == ['frame 1 of 1']


def test_titles_are_literal_and_layers_have_room(tmp_path):
    layers = [f'layer{i}' for i in range(60)]
    figure = decisions.draw(FRAMES, layers, np.zeros((1, 60, 2), int), '$ a \\b $ {c}_d\n2')
    assert figure.get_suptitle() == '$ a \\b $ {c}_d\n2'
    figure.savefig(tmp_path / 'tall.png', dpi=72)
    labels = parts(figure)[1][0].get_yticklabels()
    boxes = [label.get_window_extent() for label in labels]
    assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(boxes))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'frames': FRAMES[0]}, 'frames: expected uint8 of shape'),
        ({'frames': FRAMES.astype(float)}, 'got float64 of shape'),
        ({'policy': POLICY[0]}, r'policy: expected options.*got shape \(3, 2\)'),
        ({'policy': POLICY - 1}, 'policy: expected options, 0 or more'),
        ({'policy': POLICY[:0]}, r'got shape \(0, 3, 2\)'),
        ({'layers': LAYERS[:2]}, 'layers: expected 3 names, as in policy, got 2'),
    ],
)
def test_what_is_of_another_shape_is_named(change, message):
    given = {'frames': FRAMES, 'layers': LAYERS, 'policy': POLICY, 'title': ''}
    with pytest.raises(ValueError, match=message):
        decisions.draw(**{**given, **change})
