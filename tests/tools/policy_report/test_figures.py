# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Figures show the numbers they are given, and any name."""

import io

import cv2
import numpy as np
import pytest

from policy_report import figures
from policy_report.categories import summarise_categories
from policy_report.strips import Strip

from .predictions import HOSTILE, videos

pytestmark = pytest.mark.fast


def rendered(figure):
    """The figure as pixels."""
    stream = io.BytesIO()
    figure.savefig(stream, format='png', dpi=40)
    return cv2.imdecode(np.frombuffer(stream.getvalue(), np.uint8), cv2.IMREAD_COLOR)


def some_videos(number=60):
    random = np.random.default_rng(0)
    rows = [
        (int(label), int(predicted), float(ratio))
        for label, predicted, ratio in zip(
            random.integers(0, 3, number),
            random.integers(0, 3, number),
            random.uniform(0.3, 0.8, number),
            strict=True,
        )
    ]
    return videos(rows)


def test_the_heat_map_is_that_of_the_options():
    chosen = np.array(
        [
            [[0.25, 0.5, 0.25, 0], [1, 0, 0, 0]],
            [[0, 0.001, 0.999, 0], [0.5, 0.5, 0, 0]],
        ]
    )
    figure = figures.draw_options(chosen, {'layer1': (3, 1), HOSTILE: (3, 2)})
    channel, temporal = figure.axes[:2]
    for dimension, axis in enumerate((channel, temporal)):
        (image,) = axis.images
        assert image.get_array().shape == (2, 3)
        np.testing.assert_allclose(image.get_array().filled(0), chosen[:, dimension, :3])
    # What a layer lacks is left out, and not shown as never chosen.
    absent = np.ma.getmaskarray(temporal.images[0].get_array())
    assert absent.tolist() == [[False, True, True], [False, False, True]]
    assert [text.get_text() for text in temporal.texts] == ['100', '50', '50']
    assert [text.get_text() for text in channel.texts] == ['25', '50', '25', '0', '<1', '>99']
    assert rendered(figure).std() > 0
    assert [label.get_text() for label in channel.get_yticklabels()] == ['layer1', HOSTILE]


def test_every_video_is_counted():
    found = some_videos()
    every, compared, accuracy = figures.draw_compute(found).axes
    assert sum(bar.get_height() for bar in every.patches) == 60
    for polygon in compared.patches:  # outlines of histograms; each sums to one
        (low, high) = polygon.get_path().get_extents().intervaly
        assert low == 0
        assert 0 < high <= 1
    labels = [text.get_text() for text in compared.get_legend().get_texts()]
    hits = int((found.correct == 1).sum())
    assert labels[0].startswith(f'correct: {hits} videos')
    assert labels[1].startswith(f'wrong: {60 - hits} videos')
    assert sum(int(text.get_text()) for text in accuracy.texts) == 60
    weighted = sum(
        bar.get_height() * int(text.get_text())
        for bar, text in zip(accuracy.patches, accuracy.texts, strict=True)
    )
    assert weighted == pytest.approx(hits)


def test_videos_that_take_the_same_are_drawn():
    figure = figures.draw_compute(videos([(0, 0, 0.5), (1, 1, 0.5)]))
    assert [bar.get_height() for bar in figure.axes[0].patches] == [2]
    assert rendered(figure).std() > 0


def test_without_labels_nothing_is_compared():
    figure = figures.draw_compute(videos([(-1, 0, 0.5), (-1, 1, 0.25)]))
    assert len(figure.axes) == 1


def test_strips_and_missing_files_of_any_name():
    found = videos([(0, 0, 0.5), (0, 0, 0.25)], names=['a.mp4', f'{HOSTILE}\n\udcff.mp4'])
    image = np.full((10, 40, 3), 77, np.uint8)
    strips = {0: Strip(image), 1: Strip(None, 'missing on disk')}
    categories = summarise_categories(found, [HOSTILE, 'b', 'c'])
    figure = figures.draw_categories(categories, found, strips)
    most, least = figure.axes
    assert np.array_equal(most.images[0].get_array(), image)
    assert most.get_title(loc='left').endswith('most 50.0 %')
    assert least.get_title(loc='left').endswith('least 25.0 %')
    assert not least.images
    (text,) = least.texts
    assert text.get_text().endswith('missing on disk')
    assert text.get_text().startswith('</script>')
    assert rendered(figure).std() > 0


@pytest.mark.parametrize('length', [9, 10, 60])
def test_long_names_keep_both_ends(length):
    name = 'beginning' * 10 + '.mp4'
    short = figures.printable(name, length)
    assert len(short) <= length
    assert short[0] == name[0]
    assert short.endswith('.mp4')
    assert figures.printable('a\tb', 10) == 'a\N{REPLACEMENT CHARACTER}b'
