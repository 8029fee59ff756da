# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Names of classes and actions come from files, and what does not fit is named."""

import pytest

from annotations.ava_format import write_label_map
from vared2_mmaction.apis.labels import BACKGROUND, read_actions, read_classes

pytestmark = pytest.mark.fast


def write(folder, text):
    path = folder / 'labels.txt'
    path.write_text(text, encoding='utf-8')
    return str(path)


def test_one_class_a_line(tmp_path):
    assert read_classes(write(tmp_path, ' läuft\nrun fast \n\n'), 2) == ['läuft', 'run fast']
    assert read_classes(write(tmp_path, '\ufeffrun\nwalk\n'), 2) == ['run', 'walk']  # Windows
    assert read_classes(write(tmp_path, 'run\nwalk\n'), None) == ['run', 'walk']
    assert read_classes(None, 2) == ['0', '1']


def test_plain_names_are_those_of_the_actions(tmp_path):
    assert read_actions(write(tmp_path, 'walk\nrun\n'), 3) == [BACKGROUND, 'walk', 'run']
    assert read_actions(write(tmp_path, '\ufeffrun\n'), 2) == [BACKGROUND, 'run']
    assert read_actions(None, 3) == [BACKGROUND, '1', '2']


def test_a_label_map_names_the_actions_it_has(tmp_path):
    write_label_map(tmp_path / 'map.pbtxt', ['walk', 'run (fast)'])
    path = str(tmp_path / 'map.pbtxt')
    assert read_actions(path, 4) == [BACKGROUND, 'walk', 'run (fast)', '3']
    ava = 'label {\n  name: "fall"\n  label_id: 2\n  label_type: PERSON_MOVEMENT\n}\n'
    assert read_actions(write(tmp_path, ava), 3) == [BACKGROUND, '1', 'fall']


def test_custom_classes_are_numbers_of_the_label_map(tmp_path):
    write_label_map(tmp_path / 'map.pbtxt', ['walk', 'run', 'fall'])
    assert read_actions(str(tmp_path / 'map.pbtxt'), 3, [3, 1]) == [BACKGROUND, 'fall', 'walk']


@pytest.mark.parametrize(
    ('read', 'text', 'message'),
    [
        (read_classes, 'a\nb\n', 'found 2 names, expected 3 classes'),
        (read_actions, 'a\nb\nc\n', 'found 3 names, expected 2 actions'),
        (read_actions, 'item {\n  name: "a"\n  id: 3\n}', 'found action 3, expected 1 to 2'),
        (read_actions, 'item {\n  name: "a"\n}', 'found no action, expected 1 to 2'),
        (read_actions, 'item {\n  name: "a"\n  id: one\n}', 'expected a label map of AVA'),
    ],
)
def test_files_of_something_else_are_named(read, text, message, tmp_path):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        read(path, 3)
    assert repr(path) in str(caught.value)


def test_files_that_are_missing_or_no_text_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="LABELS='gone.txt'"):
        read_actions('gone.txt', 3)
    (tmp_path / 'bytes').write_bytes(b'\xff\xfe\xff')
    with pytest.raises(ValueError, match='expected text in UTF-8'):
        read_classes(str(tmp_path / 'bytes'), 3)
