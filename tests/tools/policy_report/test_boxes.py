# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Boxes are drawn where they are, and texts where there is room."""

import numpy as np
import pytest
from PIL import ImageColor

from policy_report.boxes import ANNOTATED, PREDICTED, Box, describe, draw_boxes

pytestmark = pytest.mark.fast

FRAME = np.zeros((100, 200, 3), np.uint8)


def pixels(image, colour):
    """Where a colour is: first and last column and row, and their number."""
    rows, columns = np.nonzero((image == ImageColor.getrgb(colour)).all(-1))
    return [columns.min(), rows.min(), columns.max(), rows.max()], len(rows)


@pytest.mark.parametrize('height', [100, 240])
def test_a_box_is_where_its_corners_are(height):
    image = draw_boxes(FRAME, [Box((0.25, 0.2, 0.75, 0.6), (), ANNOTATED)], height)
    assert image.shape == (height, 2 * height, 3)
    found, number = pixels(image, ANNOTATED)
    expected = np.array([0.25, 0.2, 0.75, 0.6]) * (2 * height, height, 2 * height, height)
    np.testing.assert_allclose(found, expected, atol=1.5)
    assert number < 6 * height  # two pixels wide, and nothing inside
    assert FRAME.max() == 0


def test_corners_outside_are_moved_to_the_edge():
    image = draw_boxes(FRAME, [Box((-1, -0.1, 0.5, 2), (), PREDICTED)], 100)
    assert pixels(image, PREDICTED)[0] == [0, 0, 99, 99]


def texts(boxes):
    """Rows that each box's text adds to what is drawn."""
    drawn = draw_boxes(FRAME, boxes, 100).any(-1)
    outlines = draw_boxes(FRAME, [box._replace(lines=()) for box in boxes], 100).any(-1)
    return np.flatnonzero((drawn & ~outlines).any(1))


def test_text_stands_above_or_below():
    corners = (0.1, 0.4, 0.5, 0.6)
    above, below = (texts([Box(corners, ('run',), ANNOTATED, low)]) for low in (False, True))
    assert above.max() < 40
    assert below.min() > 59


def test_text_stays_inside_the_frame():
    lines = ('a first action', 'a second one')
    alone = texts([Box((0.1, 0.5, 0.2, 0.6), lines, ANNOTATED)])
    for corners, low in (((0.9, 0.0, 1.0, 1.0), False), ((0.9, 0.0, 1.0, 1.0), True)):
        moved = texts([Box(corners, lines, ANNOTATED, low)])
        assert len(moved) >= len(alone) - 2


def test_texts_do_not_cover_each_other():
    box = Box((0.1, 0.4, 0.5, 0.6), ('run', 'fall'), ANNOTATED)
    assert len(texts([box, box])) == pytest.approx(2 * len(texts([box])), abs=2)
    image = draw_boxes(FRAME, [box] * 20, 100)  # no room for all: none is left out by an error
    assert image.any()


def test_any_name_can_be_drawn():
    names = ('läuft', '走', '$x_{$', 'a very long name of an action that is wider than the frame')
    assert texts([Box((0, 0.5, 1, 0.6), names, PREDICTED)]).size


def test_the_best_action_is_named_and_others_that_are_likely():
    names = ['a', 'b', 'c', 'd', 'e']
    assert describe(names, np.array([0.1, 0.3, 0.2, 0.0, 0.1])) == ['b 0.30']
    likely = np.array([0.6, 0.9, 0.5, 0.8, 0.7])
    assert describe(names, likely) == ['b 0.90', 'd 0.80', 'e 0.70']
    assert describe(names, likely, most=5)[-1] == 'c 0.50'
