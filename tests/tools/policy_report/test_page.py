# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""A page holds all videos, needs nothing from outside, and no name becomes part of its code."""

import base64
import hashlib
import json
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from policy_report.page import common_folder, embedded_json

from .pages import CLASSES, detection_parts, parts, write
from .predictions import HOSTILE, videos


class Parsed(HTMLParser):
    """Elements of a page with their attributes, and the texts of scripts, styles and all others."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.inside = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        self.texts.append((self.inside, data))

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    return Parsed(write(tmp_path_factory.mktemp('page'))[1])


def test_the_table_has_all_videos(page):
    text = next(text for tag, text in page.texts if tag == 'script')
    data = json.loads(text)
    found = parts().videos
    assert data['classes'] == CLASSES
    assert data['video'] == [s.name.removeprefix('folder/') for s in found.sources]
    assert [tuple(labels) for labels in data['labels']] == [s.labels for s in found.sources]
    assert data['correct'] == found.correct.tolist()
    assert data['ratio'] == found.ratio.tolist()
    assert {len(column) for key, column in data.items() if key != 'classes'} == {len(found)}


def test_names_do_not_become_elements(page):
    assert [attributes.get('type') for attributes in page.of('script')] == [
        'application/json',
        None,
    ]
    assert len(page.of('title')) == len(page.of('style')) == 1
    assert not page.of('b') or all(a.get('class') in (None, 'most', 'least') for a in page.of('b'))
    assert not any(key.startswith('on') for _, attributes in page.elements for key in attributes)
    assert sum(text.count(HOSTILE) for tag, text in page.texts if tag != 'script') >= 3
    assert any(HOSTILE in attributes['alt'] for attributes in page.of('img'))


def test_the_page_needs_nothing_from_outside(page):
    for _, attributes in page.elements:
        for key in ('src', 'href'):
            assert attributes.get(key, '#').startswith(('#', 'data:image/'))
        assert 'style' not in attributes
    assert not page.of('link')
    assert not any(
        'url(' in text or '@import' in text for tag, text in page.texts if tag == 'style'
    )


def test_only_its_own_script_and_style_may_run(page):
    policy = next(a['content'] for a in page.of('meta') if 'http-equiv' in a)
    assert "default-src 'none'" in policy
    assert 'unsafe' not in policy
    texts = dict(page.texts)  # the last script is the one that runs
    for tag in ('style', 'script'):
        digest = base64.b64encode(hashlib.sha256(texts[tag].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_strips_are_in_the_page(page):
    shown = [a['src'] for a in page.of('img') if a['src'].startswith('data:image/jpeg')]
    assert len(shown) == 3  # of four: one file is missing
    content = base64.b64decode(shown[0].partition(',')[2])
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(image.astype(int) - (0, 0, 200)).max() < 8  # red, blue first
    texts = [text.strip() for _, text in page.texts]
    assert 'missing on disk' in texts
    assert 'folder/video3.mp4' in texts


def test_unlabelled_videos_are_shown_without_accuracy(tmp_path):
    found = videos([(-1, 0, 0.5), (-1, 1, 0.25)])
    page = parts(found)._replace(categories=[], shown=[], strips={})
    text = write(tmp_path, page)[1]
    assert 'top-1' not in text
    assert 'id="categories"' not in text


def test_pages_of_detection_say_what_is_found(tmp_path):
    text = write(tmp_path, detection_parts())[1]
    parsed = Parsed(text)
    data = json.loads(next(text for tag, text in parsed.texts if tag == 'script'))
    assert data['correct'] == pytest.approx([2 / 3, 0], abs=1e-6)
    assert data['labels'] == [[1, 2, 3], [2]]
    words = [text.strip() for _, text in parsed.texts]
    assert {'actions found', 'some missed', 'Found', 'actions found 66.7 %'} <= set(words)
    assert all(word not in text for word in ('top-1', 'taken for', '>wrong<'))


@pytest.mark.parametrize('value', [HOSTILE, '<!--', '<script', '\udcff', ']]>', 'é\u2029'])
def test_json_survives_html(value):
    text = embedded_json({value: [value]})
    assert text.isascii()
    assert not set('<>&') & set(text)
    assert json.loads(text) == {value: [value]}


@pytest.mark.parametrize(
    ('names', 'folder'),
    [
        (['a/b/c.mp4', 'a/b/d.mp4'], 'a/b'),
        (['a/b/c.mp4', 'a/bb/d.mp4'], 'a'),
        (['/c.mp4', '/d.mp4'], ''),
        (['c.mp4', 'a/d.mp4'], ''),
        (['/a/c.mp4', 'a/d.mp4'], ''),
        (['s3://bucket/c.mp4', 's3://bucket/d.mp4'], ''),
        (['a//b/c.mp4', 'a/b/d.mp4'], ''),
    ],
)
def test_the_common_folder_is_a_prefix_of_all(names, folder):
    found = common_folder(names)
    assert found == folder
    assert all(name.startswith(f'{found}/' if found else '') for name in names)
