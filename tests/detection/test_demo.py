# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""tools/demo.py with a detector: what it prints and draws, and how it fails."""

import re

import cv2
import numpy as np
import pytest

from vared2_mmaction.apis import detect, load_detector

from ..loading import load_tool
from ..videos import HEIGHT, WIDTH, write_video

BOXES = '4,14,30,40\n30,2,64,48\n'


@pytest.fixture(scope='module')
def tool():
    return load_tool('demo')


@pytest.fixture
def given(project, tmp_path):
    """VIDEO, CONFIG and CHECKPOINT, and a file of boxes."""
    (tmp_path / 'boxes.txt').write_text(BOXES)
    video = write_video(tmp_path / 'video.mp4', 24)
    return [video, project.config, project.checkpoint], str(tmp_path / 'boxes.txt')


def test_prints_the_actions_of_boxes_and_compute(tool, given, capsys):
    argv, boxes = given
    tool.main([*argv, '--boxes', boxes, '--timestamp', '0.5', '--device', 'cpu'])
    printed = capsys.readouterr().out
    found = detect(load_detector(*argv[1:]), argv[0], [(4, 14, 30, 40), (30, 2, 64, 48)], 0.5)
    assert 'clip around 0.50 s, frame 6 of 24' in printed
    assert re.findall(r'^box (\d) \((.*)\)$', printed, re.MULTILINE) == [
        ('1', '4, 14, 30, 40'),
        ('2', '30, 2, 64, 48'),
    ]
    lines = re.findall(r'^ +([\d.]+)  (\w+)$', printed, re.MULTILINE)
    assert [label for _, label in lines] == [*found.labels[0][:5], *found.labels[1][:5]]
    scores = [*found.scores[0][:5], *found.scores[1][:5]]
    assert [float(score) for score, _ in lines] == pytest.approx(scores, abs=1e-4)
    assert '1 view of 8 x 48 x 48 (frames x height x width)' in printed
    assert f'{100 * found.compute_ratio:.1f} % of the static convolutions' in printed
    assert 'whole frame' not in printed


def test_says_that_the_whole_frame_is_the_box(tool, given, capsys):
    tool.main(given[0])
    assert f'box 1 (0, 0, {WIDTH}, {HEIGHT}), the whole frame' in capsys.readouterr().out


def test_frames_have_boxes(tool, given):
    argv, _ = given
    found = detect(load_detector(*argv[1:]), argv[0], [(16, 24, 48, 48)])
    (frames,) = tool.draw_frames(found)
    assert len(frames) == 8
    colour = (0xEA, 0x58, 0x0C)
    for frame in frames:
        rows, columns = np.nonzero((frame == colour).all(-1))
        side = tool.HEIGHT
        assert columns.min() == pytest.approx(side * 16 / WIDTH, abs=2)
        assert columns.max() == pytest.approx(side * 48 / WIDTH, abs=2)
        assert rows.min() == pytest.approx(side * 24 / HEIGHT, abs=2)


def test_writes_a_figure(tool, given, tmp_path):
    argv, boxes = given
    tool.main([*argv, '--boxes', boxes, '--out', str(tmp_path / 'figure.png')])
    assert cv2.imread(str(tmp_path / 'figure.png')).std() > 0


def test_boxes_of_a_detector(tool, given, monkeypatch, capsys):
    asked = []

    def find_people(*arguments):
        asked.append(arguments)
        return np.array([[4.0, 14, 30, 40]])

    monkeypatch.setattr(tool, 'find_people', find_people)
    tool.main([*given[0], '--detector', 'people.py', 'people.pth', '--timestamp', '1'])
    assert asked == [('people.py', 'people.pth', given[0][0], 1.0, None)]
    assert 'box 1 (4, 14, 30, 40)\n' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--boxes', 'gone.txt'], "BOXES='gone.txt': no such file"),
        (['--timestamp', '2.5'], 'TIMESTAMP=2.5: expected 0 to 2 seconds'),
        (['--labels', __file__], 'names, expected 8 actions'),
        (['--device', 'gpu'], "device='gpu'"),
    ],
)
def test_errors_are_one_line_and_come_before_the_network(
    tool, given, options, message, monkeypatch, capsys
):
    monkeypatch.setattr('vared2_mmaction.apis.detection.load_model', None)
    with pytest.raises(SystemExit, match='2'):
        tool.main([*given[0], *options])
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_boxes_outside_the_frame_are_named(tool, given, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, 'load_detector', None)
    (tmp_path / 'outside.txt').write_text('0,0,10,10\n0,0,10,49\n')
    with pytest.raises(SystemExit, match='2'):
        tool.main([*given[0], '--boxes', str(tmp_path / 'outside.txt')])
    assert "outside.txt', line 2: expected 0 <= x1 < x2 <= 64" in capsys.readouterr().err


def test_one_source_of_boxes(tool, given, capsys):
    with pytest.raises(SystemExit):
        tool.main([*given[0], '--boxes', given[1], '--detector', 'a.py', 'a.pth'])
    assert 'not allowed with argument --boxes' in capsys.readouterr().err
