# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Mini-Kinetics lists: what MMAction2 reads back is what the split files say."""

import importlib.util
import os
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from mmaction.datasets import VideoDataset

from annotations import mini_kinetics
from annotations.mini_kinetics import (
    DELIMITERS,
    MiniKineticsError,
    build_lists,
    index_videos,
    read_split,
)

HEADER = 'label,youtube_id,time_start,time_end,split,is_cc'
TRAIN = [
    'tai chi,-a_b-c_d-e_,825,835,train,0',
    'abseiling,AAAAAAAAAA1,0,10,train,1',
    'abseiling,A_000001_00,3,13,train,0',
]
VAL = ['abseiling,BBBBBBBBBB1,5,15,val,0', 'tai chi,BBBBBBBBBB2,7,17,val,0']
NAMES = {
    '-a_b-c_d-e_': '-a_b-c_d-e__000825_000835',
    'AAAAAAAAAA1': 'AAAAAAAAAA1_000000_000010',
    'A_000001_00': 'A_000001_00_000003_000013',
    'BBBBBBBBBB1': 'BBBBBBBBBB1_000005_000015',
    'BBBBBBBBBB2': 'BBBBBBBBBB2_000007_000017',
}


class Sandbox:
    """Split files and a folder of empty videos."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.root = folder, folder / 'out', folder / 'videos'
        self.root.mkdir()
        self.train = self.write_csv('train.csv', TRAIN)
        self.val = self.write_csv('val.csv', VAL)

    def write_csv(self, name: str, rows: list[str], header: str = HEADER) -> Path:
        path = self.folder / name
        path.write_text('\n'.join([header, *rows]) + '\n')
        return path

    def add_video(self, name: str, root: Path | None = None) -> Path:
        path = (root or self.root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    def add_all(self, tai_chi: str = 'tai_chi', abseiling: str = 'abseiling') -> None:
        for row in TRAIN + VAL:
            label, youtube_id = row.split(',')[:2]
            folder = tai_chi if label == 'tai chi' else abseiling
            self.add_video(f'{folder}/{NAMES[youtube_id]}.mp4')

    def build(self, *roots: Path, delimiter: str = 'auto') -> mini_kinetics.Report:
        return build_lists(self.train, self.val, roots or [self.root], self.out, delimiter)

    def read_back(self, split: str, report: mini_kinetics.Report) -> list[tuple[str, str]]:
        """(YouTube id, label) as MMAction2's data set sees them; every file must exist."""
        classes = (self.out / 'classes.txt').read_text().splitlines()
        data = VideoDataset(
            str(self.out / f'{split}.txt'),
            pipeline=[],
            data_prefix={'video': str(report.base)},
            delimiter=DELIMITERS[report.delimiter],
        )
        samples = [data.get_data_info(i) for i in range(len(data))]
        assert all(Path(sample['filename']).is_file() for sample in samples)
        return [(Path(s['filename']).name[:11], classes[s['label']]) for s in samples]


@pytest.fixture
def sandbox(tmp_path) -> Sandbox:
    return Sandbox(tmp_path)


def expected(rows: list[str]) -> list[tuple[str, str]]:
    return [(row.split(',')[1], row.split(',')[0]) for row in rows]


@pytest.mark.parametrize(
    ('folder', 'delimiter'),
    [('tai_chi', 'space'), ('tai chi', 'comma'), ('tai, chi', 'tab'), ('.', 'space')],
)
def test_mmaction2_reads_back_the_split(folder, delimiter, sandbox):
    sandbox.add_all(tai_chi=folder)
    report = sandbox.build()
    assert report.delimiter == delimiter
    assert not report.missing
    assert sandbox.read_back('train', report) == expected(TRAIN)
    assert sandbox.read_back('val', report) == expected(VAL)
    assert (sandbox.out / 'classes.txt').read_text() == 'abseiling\ntai chi\n'
    assert (sandbox.out / 'missing.csv').read_text() == HEADER + '\n'


def test_paths_are_relative_to_the_common_parent_of_several_roots(sandbox):
    for row in TRAIN + VAL:
        _, youtube_id, _, _, split, _ = row.split(',')
        sandbox.add_video(f'k/{split}/{NAMES[youtube_id]}.mp4', sandbox.folder)
    report = sandbox.build(sandbox.folder / 'k/train', sandbox.folder / 'k/val')
    assert report.base == sandbox.folder / 'k'
    assert (sandbox.out / 'val.txt').read_text().startswith('val/BBBBBBBBBB1_000005_000015.mp4 0\n')
    assert sandbox.read_back('train', report) == expected(TRAIN)


@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', '.webm', '.avi', '.MP4'])
@pytest.mark.parametrize('stem', ['AAAAAAAAAA1_000000_000010', 'AAAAAAAAAA1_0_10', 'AAAAAAAAAA1'])
def test_every_spelling_of_a_video_is_found(stem, suffix, sandbox):
    path = sandbox.add_video(f'any name/{stem}{suffix}')
    clip = read_split(sandbox.train, 'train')[1]
    assert index_videos([sandbox.root]).find(clip) == path


@pytest.mark.parametrize(
    'name',
    [
        'AAAAAAAAAA1_000001_000011.mp4',  # another clip of that video
        'AAAAAAAAAA1_000000_000010.mp4.part',
        'AAAAAAAAAA1_000000_000010.txt',
        'xAAAAAAAAAA1_000000_000010.mp4',
        'AAAAAAAAAA1_000000.mp4',
    ],
)
def test_other_files_are_not_taken_for_the_clip(name, sandbox):
    sandbox.add_video(name)
    assert index_videos([sandbox.root]).find(read_split(sandbox.train, 'train')[1]) is None


def test_the_trimmed_clip_goes_before_the_whole_video_and_earlier_roots_before_later(sandbox):
    clip = read_split(sandbox.train, 'train')[1]
    first, second = sandbox.folder / 'z', sandbox.folder / 'a'
    whole = sandbox.add_video('AAAAAAAAAA1.mp4', first)
    later = sandbox.add_video('b/AAAAAAAAAA1_000000_000010.mp4', second)
    assert index_videos([first, second]).find(clip) == later
    earlier = sandbox.add_video('AAAAAAAAAA1_000000_000010.mp4', first)
    sandbox.add_video('a/AAAAAAAAAA1.mp4', second)
    assert index_videos([first, second]).find(clip) == earlier
    earlier.unlink()
    later.unlink()
    assert index_videos([first, second]).find(clip) == whole


def test_every_folder_is_scanned_once_even_with_links_and_nested_roots(sandbox, monkeypatch):
    sandbox.add_all()
    (sandbox.root / 'loop').symlink_to(sandbox.root)
    (sandbox.root / 'tai_chi' / 'AAAAAAAAAA9.mp4').symlink_to(sandbox.root / 'gone.mp4')
    scans: Counter[str] = Counter()
    scandir = os.scandir

    def counted(path):
        scans[os.path.realpath(path)] += 1
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', counted)
    index = index_videos([sandbox.root, sandbox.root / 'abseiling'])
    folders = [sandbox.root, sandbox.root / 'abseiling', sandbox.root / 'tai_chi']
    assert scans == {os.path.realpath(folder): 1 for folder in folders}
    assert len(index.timed) == len(NAMES)
    assert not index.whole  # the dangling link is no video


def test_missing_rows_are_reported_and_the_rest_is_listed(sandbox):
    sandbox.add_all()
    (sandbox.root / 'abseiling' / f'{NAMES["AAAAAAAAAA1"]}.mp4').unlink()
    report = sandbox.build()
    assert report.complete_enough
    assert (sandbox.out / 'missing.csv').read_text() == f'{HEADER}\n{TRAIN[1]}\n'
    assert report.found['train'] == {'abseiling': 1, 'tai chi': 1}
    assert report.listed['train'] == {'abseiling': 2, 'tai chi': 1}
    assert sandbox.read_back('train', report) == expected([TRAIN[0], TRAIN[2]])


def test_a_class_without_videos_stops_the_lists(sandbox):
    sandbox.add_all()
    (sandbox.root / 'tai_chi' / f'{NAMES["BBBBBBBBBB2"]}.mp4').unlink()
    report = sandbox.build()
    assert report.empty_classes == [('val', 'tai chi')]
    assert not report.complete_enough
    assert [path.name for path in sandbox.out.iterdir()] == ['missing.csv']


@pytest.mark.parametrize(
    ('rows', 'header', 'message'),
    [
        ([TRAIN[0]], HEADER.replace('time_end', 'end'), r"bad\.csv:1: column 4 .*'end'.*time_end"),
        ([TRAIN[0]], 'label,youtube_id', r'bad\.csv:1: the header has 2 columns'),
        ([], HEADER, r'bad\.csv:2: no clips'),
        ([TRAIN[0], TRAIN[1], TRAIN[0]], HEADER, r'bad\.csv:4: column youtube_id: .*on line 2'),
        (['a,AAAAAAAAAA1,x,10,train,0'], HEADER, r"bad\.csv:2: column time_start: 'x'"),
        (['a,AAAAAAAAAA1,0,9.5,train,0'], HEADER, r"bad\.csv:2: column time_end: '9\.5'"),
        (['a,AAAAAAAAAA1,10,10,train,0'], HEADER, r'bad\.csv:2: column time_end: 10 is not after'),
        ([TRAIN[0], 'a,short,0,10,train,0'], HEADER, r"bad\.csv:3: column youtube_id: 'short'"),
        ([' ,AAAAAAAAAA1,0,10,train,0'], HEADER, r'bad\.csv:2: column label is empty'),
        (['a,AAAAAAAAAA1,0,10,val,0'], HEADER, r"bad\.csv:2: column split: 'val'"),
        (['a,AAAAAAAAAA1,0,10,train'], HEADER, r'bad\.csv:2: 5 columns \(no is_cc\)'),
    ],
)
def test_malformed_rows_are_named(rows, header, message, sandbox):
    path = sandbox.write_csv('bad.csv', rows, header)
    with pytest.raises(MiniKineticsError, match=message):
        read_split(path, 'train')


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        ('yoga,BBBBBBBBBB3,0,10,val,0', r"val\.csv:4: column label: 'yoga' .*train\.csv"),
        ('abseiling,AAAAAAAAAA1,0,10,val,0', r'val\.csv:4: column youtube_id: .*line 3 of .*train'),
    ],
)
def test_validation_rows_must_fit_the_training_rows(row, message, sandbox):
    sandbox.write_csv('val.csv', [*VAL, row])
    with pytest.raises(MiniKineticsError, match=message):
        sandbox.build()


@pytest.mark.parametrize('name', ['absent.csv', 'latin.csv'])
def test_unreadable_split_files_are_named(name, sandbox):
    (sandbox.folder / 'latin.csv').write_bytes(HEADER.encode() + b'\n\xe9')
    with pytest.raises(MiniKineticsError, match=name):
        read_split(sandbox.folder / name, 'train')


def test_a_missing_root_is_named(sandbox):
    with pytest.raises(MiniKineticsError, match='nowhere: no such folder'):
        sandbox.build(sandbox.folder / 'nowhere')


@pytest.mark.parametrize(
    ('folder', 'delimiter'),
    [('tai chi', 'space'), ('a, b\tc', 'auto'), (' tai', 'auto'), ('tai\nchi', 'comma')],
)
def test_paths_that_mmaction2_would_missplit_are_refused(folder, delimiter, sandbox):
    sandbox.add_all(tai_chi=folder)
    with pytest.raises(MiniKineticsError, match='VideoDataset'):
        sandbox.build(delimiter=delimiter)
    assert not sandbox.out.exists()


def test_lists_do_not_depend_on_the_order_of_the_folder(sandbox, monkeypatch):
    sandbox.add_all()
    sandbox.add_video('zzz/AAAAAAAAAA1_000000_000010.mp4')
    scandir = os.scandir
    results = []
    for backwards in (False, True):

        @contextmanager
        def ordered(path, backwards=backwards):
            with scandir(path) as entries:
                yield sorted(entries, key=lambda entry: entry.name, reverse=backwards)

        monkeypatch.setattr(os, 'scandir', ordered)
        sandbox.build()
        results.append({path.name: path.read_bytes() for path in sandbox.out.iterdir()})
    assert results[0] == results[1]


def test_an_interrupted_write_leaves_the_old_list(sandbox, monkeypatch):
    sandbox.add_all()
    sandbox.build()
    before = {path.name: path.read_bytes() for path in sandbox.out.iterdir()}
    write_text = Path.write_text

    def half(self, text, **kwargs):
        write_text(self, text[: len(text) // 2], **kwargs)
        raise OSError('disk full')

    monkeypatch.setattr(Path, 'write_text', half)
    with pytest.raises(OSError, match='disk full'):
        sandbox.build()
    assert {path.name: path.read_bytes() for path in sandbox.out.iterdir()} == before


@pytest.mark.parametrize(
    ('removed', 'code', 'shown'),
    [
        ([], 0, 'train: 3 of 3'),
        (['AAAAAAAAAA1'], 0, 'Videos missing'),
        (['BBBBBBBBBB2'], 1, 'tai chi (val)'),
        (list(NAMES), 1, 'train: 0 of 3'),
    ],
)
def test_exit_code_and_report(removed, code, shown, sandbox, monkeypatch, capsys):
    sandbox.add_all()
    for youtube_id in removed:
        next(sandbox.root.rglob(f'{youtube_id}_*')).unlink()
    argv = ['--train-csv', sandbox.train, '--val-csv', sandbox.val]
    argv += ['--videos', sandbox.root, '--out', sandbox.out]
    assert run_tool(argv, monkeypatch) == code
    output = capsys.readouterr().out
    assert shown in output
    output = output.replace('\n', '')  # long paths are wrapped
    assert ('missing.csv' in output) == bool(removed)
    assert ("delimiter=' '" in output) == (code == 0)


def test_errors_go_to_stderr_without_a_traceback(sandbox, monkeypatch, capsys):
    argv = ['--train-csv', sandbox.val, '--val-csv', sandbox.val]
    argv += ['--videos', sandbox.root, '--out', sandbox.out]
    assert run_tool(argv, monkeypatch) == 2
    assert 'val.csv:2: column split' in capsys.readouterr().err


def run_tool(argv: list, monkeypatch: pytest.MonkeyPatch) -> int:
    tool = Path(__file__).resolve().parents[3] / 'tools' / 'data' / 'build_mini_kinetics.py'
    spec = importlib.util.spec_from_file_location('build_mini_kinetics', tool)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, 'argv', [tool.name, *map(str, argv)])
    try:
        module.main()
    except SystemExit as end:
        return end.code
    return 0
