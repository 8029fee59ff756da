# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The figure: which rows it takes, what it draws of them, and what it refuses."""

import json

import cv2
import pytest

from benchmarking import scaling

from ...loading import load_tool

TIME, MEMORY = 'time (ms)', 'peak memory (MB)'


def row(frames=8, side=112, batch_size=1, policy='full', **changes):
    clips = frames * side**2 * batch_size
    return {
        **{'mode': 'infer', 'device': 'cpu', 'dtype': 'float32', 'policy': policy},
        **{'batch_size': batch_size, 'shape': [3, frames, side, side]},
        **{'static_ms': 2.0 * clips, 'dynamic_ms': 1.0 * clips},
        **{'static_peak_mb': 4.0 * clips, 'dynamic_peak_mb': 3.0 * clips},
        **changes,
    }


ROWS = [
    *(row(frames=frames, policy=policy) for frames in (8, 16) for policy in ('full', 'mixed')),
    *(row(side=side) for side in (224, 56)),
    row(batch_size=4),
]


@pytest.fixture(scope='module')
def tool():
    return load_tool('plot_scaling')


@pytest.fixture
def write(tmp_path):
    def write(report):
        path = tmp_path / f'{len(list(tmp_path.iterdir()))}.json'
        path.write_text(report if isinstance(report, str) else json.dumps(report))
        return str(path)

    return write


def test_curves_vary_one_quantity():
    side = 112**2
    assert scaling.curves(ROWS, 'frames', TIME) == {
        'stock': [(8, 2 * 8 * side), (16, 2 * 16 * side)],
        'ours, full': [(8, 8 * side), (16, 16 * side)],
        'ours, mixed': [(8, 8 * side), (16, 16 * side)],
    }
    found = scaling.curves(ROWS, 'side (pixels)', MEMORY)
    assert list(found) == ['stock', 'ours, full', 'ours, mixed']
    assert found['stock'] == [(n, 4 * 8 * n**2) for n in (56, 112, 224)]
    assert found['ours, full'] == [(n, 3 * 8 * n**2) for n in (56, 112, 224)]
    assert found['ours, mixed'] == [(112, 3 * 8 * side)]
    assert [x for x, _ in scaling.curves(ROWS, 'batch size (clips)', TIME)['stock']] == [1, 4]


def test_repeated_points_are_medians():
    rows = [row(static_ms=value) for value in (1.0, 5.0, 2.0)]
    assert scaling.curves(rows, 'frames', TIME)['stock'] == [(8, 2.0)]


def test_the_smallest_of_equally_common_values_counts():
    rows = [row(batch_size=8), row(batch_size=2, frames=16)]
    assert scaling.comparable_rows(rows, 'frames') == [rows[1]]


def test_settings_that_differ_are_told_apart():
    rows = [row(), row(device='cuda')]
    assert set(scaling.curves(rows, 'frames', TIME)) == {
        *('stock, cpu', 'stock, cuda'),
        *('ours, full, cpu', 'ours, full, cuda'),
    }


def test_the_figure_has_what_the_curves_have():
    figure = scaling.draw(ROWS)
    assert len(figure.axes) == 6
    labels = [(axis.get_xlabel(), axis.get_ylabel()) for axis in figure.axes]
    assert labels == [(x, y) for y in scaling.MEASURES for x in scaling.QUANTITIES]
    for axis, (quantity, measure) in zip(figure.axes, labels, strict=True):
        assert (axis.get_xscale(), axis.get_yscale()) == ('log', 'log')
        drawn = [list(zip(*line.get_data(), strict=True)) for line in axis.lines]
        assert drawn == list(scaling.curves(ROWS, quantity, measure).values())
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        'stock',
        'ours, full',
        'ours, mixed',
    ]


def test_files_are_drawn_together(tool, write, tmp_path):
    files = [write({'rows': ROWS[:3]}), write({'rows': ROWS[3:]})]
    assert scaling.load_rows(files) == ROWS
    out = str(tmp_path / 'figure.png')
    tool.main([*files, '--out', out])
    assert cv2.imread(out).std() > 0


@pytest.mark.parametrize(
    ('report', 'message'),
    [
        ({'rows': []}, 'expected "rows" of tools/benchmark.py, found none'),
        ([], 'expected "rows" of tools/benchmark.py, found none'),
        ('no JSON', 'expected JSON of tools/benchmark.py'),
        (
            {'rows': [row(), {k: v for k, v in row().items() if k != 'static_peak_mb'}]},
            "row 1 lacks 'static_peak_mb'",
        ),
    ],
)
def test_a_file_of_something_else_is_named(tool, write, report, message, capsys):
    path = write(report)
    with pytest.raises(SystemExit):
        tool.main([path, '--out', 'figure.png'])
    assert f'{path}: {message}' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['missing.json', '--out', 'a.png'], 'missing.json'),
        (['missing.json', '--out', 'a.jpg'], "--out 'a.jpg': expected a name that ends in .png"),
        (['missing.json', '--out', 'no/folder/a.png'], "--out 'no/folder/a.png': there is no such"),
    ],
)
def test_errors_name_the_option(tool, arguments, message, capsys):
    with pytest.raises(SystemExit):
        tool.main(arguments)
    assert message in capsys.readouterr().err
