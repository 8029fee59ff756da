# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""tools/demo.py: what it prints and writes, and how it fails."""

import re

import pytest

from vared2_mmaction.apis import load_inferencer, optimizing, recognize
from vared2_mmaction.apis.clips import Video
from vared2_mmaction.installation import has_detection

from ..loading import TOOLS, load_tool
from ..networks import CLASSES, write_network
from ..videos import write_video

VIDEO = Video('video.mp4', 100, 50, 30, 10.0)
MAGIC = {'png': b'\x89PNG', 'pdf': b'%PDF', 'svg': b'<?xml'}


@pytest.fixture(scope='module')
def tool():
    return load_tool('demo')


@pytest.fixture(scope='module')
def given(tmp_path_factory):
    """VIDEO, CONFIG and CHECKPOINT, and the names of the classes."""
    folder = tmp_path_factory.mktemp('given')
    (folder / 'classes.txt').write_text('\n'.join(CLASSES))
    video = write_video(folder / 'video.mp4', 20)
    return [video, *write_network(folder)], str(folder / 'classes.txt')


def told(capsys):
    """The one line that the tool printed to stderr."""
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_prints_classes_and_compute(tool, given, capsys):
    (video, *network), labels = given
    tool.main([video, *network, '--labels', labels, '--device', 'cpu'])
    printed = capsys.readouterr().out
    found = recognize(load_inferencer(*network, device='cpu', label_file=labels), video)
    classes = re.findall(r'^ +([\d.]+)  (\w+)$', printed, re.MULTILINE)
    assert [label for _, label in classes] == list(found.labels)
    assert [float(score) for score, _ in classes] == pytest.approx(found.scores, abs=1e-4)
    assert '1 view of 8 x 32 x 32 (frames x height x width)' in printed
    assert f'{100 * found.compute_ratio:.1f} % of the static convolutions' in printed
    executed, static = re.search(r'([\d.]+) of ([\d.]+) GMACs', printed).groups()
    assert float(executed) == pytest.approx(found.compute_gmacs, rel=0.01)
    assert float(static) == pytest.approx(found.static_gmacs, rel=0.01)
    overhead = re.search(r'operations: ([\d.e-]+) GMACs on top', printed)[1]
    assert float(overhead) == pytest.approx(found.overhead_gmacs, rel=0.01)


def test_without_optimising_it_prints_the_same(tool, given, capsys, monkeypatch):
    logged = []
    monkeypatch.setattr(optimizing, 'print_log', lambda text, *_: logged.append(text))
    printed = []
    for flags, lines in ([], 1), (['--no-optimize'], 1):
        tool.main([*given[0], '--device', 'cpu', *flags])
        printed.append(capsys.readouterr().out)
        assert len(logged) == lines
    assert logged[0].startswith('executed: ')
    numbers = [[float(n) for n in re.findall(r'\d+\.?\d*', text)] for text in printed]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-4)


@pytest.mark.parametrize('suffix', MAGIC)
def test_writes_the_figure_that_the_suffix_says(tool, given, suffix, tmp_path):
    out = tmp_path / f'figure.{suffix}'
    tool.main([*given[0], '--out', str(out)])
    assert out.read_bytes().startswith(MAGIC[suffix])


@pytest.mark.parametrize(
    ('place', 'value', 'message'),
    [
        (0, 'gone.mp4', "VIDEO='gone.mp4': no such file"),
        (0, __file__, 'expected a video file that decord can decode'),
        (1, 'gone.py', "CONFIG='gone.py': no such file"),
        (2, 'gone.pth', "CHECKPOINT='gone.pth': no such file"),
        (2, __file__, 'cannot be loaded'),
        (4, 'figure.jpg', "--out 'figure.jpg': expected a name that ends in .png, .pdf, .svg"),
        (4, 'no/folder/figure.png', "--out 'no/folder/figure.png': there is no such folder"),
    ],
)
def test_errors_are_one_line(tool, given, place, value, message, tmp_path, capsys):
    argv = [*given[0], '--out', str(tmp_path / 'figure.png')]
    argv[place] = value
    with pytest.raises(SystemExit) as caught:
        tool.main(argv)
    assert caught.value.code == 2
    line = told(capsys)
    assert message in line
    assert value in line
    assert not (tmp_path / 'figure.png').exists()


@pytest.mark.parametrize(
    'options', [['--boxes', 'b.txt'], ['--timestamp', '1'], ['--detector', 'c.py', 'c.pth']]
)
def test_options_of_detection_are_refused(tool, given, options, capsys):
    with pytest.raises(SystemExit, match='2'):
        tool.main([*given[0], *options])
    assert re.search(rf'{options[0]}: CONFIG=.*of a recognizer', told(capsys))


@pytest.mark.skipif(has_detection(), reason='detection is installed here')
def test_a_detector_without_mmdet_says_what_to_install(tool, given, capsys):
    video, _, checkpoint = given[0]
    config = str(TOOLS.parent / 'configs' / 'detection' / 'vared2_resnet3d_moving-boxes.py')
    with pytest.raises(SystemExit, match='2'):
        tool.main([video, config, checkpoint])
    assert re.search("model.type='FastRCNN'.*make setup-detection", told(capsys))
    with pytest.raises(SystemExit, match='2'):
        tool.main([video, config, checkpoint, '--detector', 'c.py', 'c.pth'])
    assert re.search("DETECTOR='c.py'.*make setup-detection", told(capsys))


@pytest.fixture
def boxes(tmp_path):
    def write(text):
        (tmp_path / 'boxes.txt').write_bytes(text.encode('latin1'))
        return str(tmp_path / 'boxes.txt')

    return write


def test_boxes_come_in_their_order(tool, boxes):
    found = tool.read_boxes(boxes('10,0,100,50\n\n 1.5, 2,3,4 \r\n'), VIDEO)
    assert found.tolist() == [[10, 0, 100, 50], [1.5, 2, 3, 4]]
    assert tool.read_boxes(boxes('\xef\xbb\xbf1,2,3,4\n'), VIDEO).tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'expected lines x1,y1,x2,y2, found none'),
        ('\xff', 'expected text'),
        ('0,0,5,5\na,b\n', "line 2: expected x1,y1,x2,y2, found 'a,b'"),
        ('0,0,5\n', 'line 1: expected x1,y1,x2,y2, found 0,0,5'),
        ('0,0,101,5\n', 'line 1: expected 0 <= x1 < x2 <= 100 and 0 <= y1 < y2 <= 50'),
        ('0,-1,5,5\n', 'pixels of the frame, found 0,-1,5,5'),
        ('5,0,5,5\n', 'found 5,0,5,5'),
        ('0,0,5,nan\n', 'found 0,0,5,nan'),
    ],
)
def test_lines_that_are_no_boxes_are_named(tool, text, message, boxes):
    path = boxes(text)
    with pytest.raises(ValueError, match=message) as caught:
        tool.read_boxes(path, VIDEO)
    assert repr(path) in str(caught.value)


def test_a_missing_file_of_boxes_is_named(tool):
    with pytest.raises(FileNotFoundError, match="BOXES='gone.txt': no such file"):
        tool.read_boxes('gone.txt', VIDEO)
