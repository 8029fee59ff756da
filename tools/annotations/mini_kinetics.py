# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Video lists of Mini-Kinetics-200 (Xie et al., arXiv 1712.04851) for MMAction2's ``VideoDataset``.

The split is published as two CSV files with the columns ``COLUMNS``. Videos are found in
folders of Kinetics by YouTube id and times, however the class folders are spelled.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from _csv import Reader as CsvReader

COLUMNS = ('label', 'youtube_id', 'time_start', 'time_end', 'split', 'is_cc')
VIDEO_SUFFIXES = ('.mp4', '.mkv', '.webm', '.avi')
DELIMITERS = {'space': ' ', 'comma': ',', 'tab': '\t'}
SPLITS = ('train', 'val')

_YOUTUBE_ID = re.compile(r'[A-Za-z0-9_-]{11}')
_VIDEO_STEM = re.compile(rf'({_YOUTUBE_ID.pattern})(?:_(\d+)_(\d+))?')
_UNREADABLE = re.compile(r'^\s|[\n\ud800-\udfff]')  # surrogates: names that are not UTF-8


class MiniKineticsError(ValueError):
    """A split file, a video folder or a path that no list can be made from."""


@dataclass(frozen=True)
class Clip:
    """One row of a split file, and its line there; times in seconds."""

    label: str
    youtube_id: str
    time_start: int
    time_end: int
    split: str
    is_cc: str
    line: int = field(default=0, compare=False)

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells clips apart."""
        return self.youtube_id, self.time_start, self.time_end

    @property
    def row(self) -> tuple[str | int, ...]:
        """The clip as the split file has it."""
        return tuple(getattr(self, name) for name in COLUMNS)


@dataclass
class VideoIndex:
    """Videos by YouTube id and, where their file names have them, by times.

    Of several files of one clip, the one in the earliest folder and first by path counts.
    """

    timed: dict[tuple[str, int, int], Path] = field(default_factory=dict)
    whole: dict[str, Path] = field(default_factory=dict)

    def find(self, clip: Clip) -> Path | None:
        """Returns the clip's file: ``ID_START_END.*`` if there is one, else ``ID.*``."""
        return self.timed.get(clip.key) or self.whole.get(clip.youtube_id)


@dataclass(frozen=True)
class Report:
    """What :func:`build_lists` found and wrote."""

    listed: dict[str, Counter[str]]
    found: dict[str, Counter[str]]
    missing: list[Clip]
    delimiter: str
    base: Path
    out: Path

    @property
    def empty_classes(self) -> list[tuple[str, str]]:
        """(split, class) pairs that the split files list but no video was found for."""
        return [
            (split, label)
            for split in SPLITS
            for label in sorted(self.listed[split])
            if not self.found[split][label]
        ]

    @property
    def complete_enough(self) -> bool:
        """Whether every class has at least one video in every split that lists it."""
        return not self.empty_classes


def read_split(path: Path, split: str) -> list[Clip]:
    """Reads and checks one published split file.

    Args:
        path: The CSV file.
        split: What its column ``split`` must say: ``train`` or ``val``.

    Returns:
        The clips, in the file's order.

    Raises:
        MiniKineticsError: Naming file, line and column, if a row is malformed or appears twice.
    """
    try:
        with open(path, newline='', encoding='utf-8-sig') as file:
            return _parse_rows(csv.reader(file), path, split)
    except OSError as error:
        raise MiniKineticsError(f'{path}: cannot be read: {error.strerror}') from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise MiniKineticsError(f'{path}: not a CSV file in UTF-8: {error}') from error


def _parse_rows(reader: CsvReader, path: Path, split: str) -> list[Clip]:
    """Makes clips of a ``csv.reader``'s rows; blank lines are passed over."""
    _check_header(next(reader, []), path)
    clips: list[Clip] = []
    lines: dict[tuple[str, int, int], int] = {}
    for row in reader:
        if not row:
            continue
        line = reader.line_num
        clip = replace(_parse_row(row, f'{path}:{line}', split), line=line)
        if clip.key in lines:
            raise MiniKineticsError(
                f'{path}:{line}: column youtube_id: {clip.youtube_id} from {clip.time_start} to '
                f'{clip.time_end} s is already on line {lines[clip.key]}'
            )
        lines[clip.key] = line
        clips.append(clip)
    if not clips:
        raise MiniKineticsError(f'{path}:2: no clips after the header')
    return clips


def _check_header(header: Sequence[str], path: Path) -> None:
    for number, (name, expected) in enumerate(zip(header, COLUMNS, strict=False), start=1):
        if name.strip() != expected:
            raise MiniKineticsError(
                f'{path}:1: column {number} of the header is {name!r}, expected {expected!r}'
            )
    if len(header) != len(COLUMNS):
        raise MiniKineticsError(
            f'{path}:1: the header has {len(header)} columns, expected {",".join(COLUMNS)}'
        )


def _parse_row(row: Sequence[str], where: str, split: str) -> Clip:
    """Checks one row; ``where`` is its file and line."""
    if len(row) != len(COLUMNS):
        absent = f' (no {COLUMNS[len(row)]})' if len(row) < len(COLUMNS) else ''
        raise MiniKineticsError(
            f'{where}: {len(row)} columns{absent}, expected {len(COLUMNS)}: {",".join(COLUMNS)}'
        )
    value = dict(zip(COLUMNS, (text.strip() for text in row), strict=True))
    if not value['label']:
        raise MiniKineticsError(f'{where}: column label is empty')
    if not _YOUTUBE_ID.fullmatch(value['youtube_id']):
        raise MiniKineticsError(
            f'{where}: column youtube_id: {value["youtube_id"]!r} is not a YouTube id '
            '(11 letters, digits, _ or -)'
        )
    start, end = (_parse_seconds(value, name, where) for name in ('time_start', 'time_end'))
    if end <= start:
        raise MiniKineticsError(f'{where}: column time_end: {end} is not after time_start {start}')
    if value['split'] != split:
        raise MiniKineticsError(f'{where}: column split: {value["split"]!r}, expected {split!r}')
    return Clip(value['label'], value['youtube_id'], start, end, split, value['is_cc'])


def _parse_seconds(value: dict[str, str], name: str, where: str) -> int:
    if not re.fullmatch(r'[0-9]+', value[name]):
        raise MiniKineticsError(f'{where}: column {name}: {value[name]!r} is not whole seconds')
    return int(value[name])


def index_videos(roots: Iterable[Path]) -> VideoIndex:
    """Walks every root once and indexes the videos named ``ID_START_END`` or ``ID``.

    Args:
        roots: Folders; class folders in them may have any name, or be absent.

    Raises:
        MiniKineticsError: If a root is not a folder, or a folder in it cannot be read.
    """
    index = VideoIndex()
    seen: set[tuple[int, int]] = set()
    for root in roots:
        if not root.is_dir():
            raise MiniKineticsError(f'{root}: no such folder of videos')
        for path in _walk(root, seen):
            stem, suffix = os.path.splitext(path.name)
            name = _VIDEO_STEM.fullmatch(stem)
            if suffix.lower() not in VIDEO_SUFFIXES or name is None:
                continue
            youtube_id, start, end = name.groups()
            if start is None:
                index.whole.setdefault(youtube_id, path)
            else:
                index.timed.setdefault((youtube_id, int(start), int(end)), path)
    return index


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Yields the files under ``folder`` in a fixed order; follows links, but no folder twice."""
    stat = folder.stat()
    if (stat.st_dev, stat.st_ino) in seen:
        return
    seen.add((stat.st_dev, stat.st_ino))
    try:
        with os.scandir(folder) as entries:
            content = sorted((e.name, e.is_dir()) for e in entries if e.is_dir() or e.is_file())
    except OSError as error:
        raise MiniKineticsError(f'{folder}: cannot be read: {error.strerror}') from error
    for name, is_dir in content:
        if is_dir:
            yield from _walk(folder / name, seen)
        else:
            yield folder / name


def build_lists(
    train_csv: Path, val_csv: Path, roots: Sequence[Path], out: Path, delimiter: str = 'auto'
) -> Report:
    """Writes ``train.txt``, ``val.txt``, ``classes.txt`` and ``missing.csv`` to ``out``.

    The lists hold a path, the delimiter and the index of the label among the sorted labels. Paths
    are relative to the root, or to the common parent of several. ``missing.csv`` holds the rows
    whose video was not found; it is all that is written if some class has no video.

    Args:
        train_csv: Published training split.
        val_csv: Published validation split.
        roots: Folders of videos; earlier ones win where a clip is in several.
        out: Folder to write to; made if need be.
        delimiter: A key of ``DELIMITERS``, or ``auto`` for the first that no path contains.

    Returns:
        What was found. Its ``delimiter`` and ``base`` belong in the config's ``VideoDataset``.

    Raises:
        MiniKineticsError: If a split file is malformed, a root is missing, or a path cannot be
            written so that ``VideoDataset`` reads it back.
    """
    train, val = read_split(train_csv, 'train'), read_split(val_csv, 'val')
    labels = _check_splits(train, val, train_csv, val_csv)
    roots = [Path(os.path.abspath(root)) for root in roots]
    base = Path(os.path.commonpath(roots))
    index = index_videos(roots)
    clips = train + val
    paths = {clip: path for clip in clips if (path := index.find(clip))}
    names = {clip: path.relative_to(base).as_posix() for clip, path in paths.items()}
    report = Report(
        listed=_count_labels(clips),
        found=_count_labels(names),
        missing=[clip for clip in clips if clip not in names],
        delimiter=_choose_delimiter(names.values(), delimiter),
        base=base,
        out=out,
    )
    _write_text(out / 'missing.csv', _to_csv(report.missing))
    if report.complete_enough:
        mark = DELIMITERS[report.delimiter]
        for split in SPLITS:
            lines = (f'{n}{mark}{labels[c.label]}\n' for c, n in names.items() if c.split == split)
            _write_text(out / f'{split}.txt', ''.join(lines))
        _write_text(out / 'classes.txt', ''.join(f'{label}\n' for label in labels))
    return report


def print_report(report: Report, console: Console | None = None) -> None:
    """Prints what was found, a table of the classes with videos missing, and what to do next."""
    console = console or Console()
    if report.missing:
        console.print(_missing_table(report))
    for split in SPLITS:
        total, found = report.listed[split].total(), report.found[split].total()
        console.print(f'{split}: {found} of {total} videos found')
    if report.missing:
        console.print(f'warning: rows without a video are in {escape(str(report.out))}/missing.csv')
    if not report.complete_enough:
        names = ', '.join(f'{label} ({split})' for split, label in report.empty_classes[:5])
        console.print(
            f'error: {len(report.empty_classes)} classes have no video, no lists were written: '
            f'{escape(names)}{", ..." if len(report.empty_classes) > 5 else ""}'
        )
        return
    console.print(
        f'lists are in {escape(str(report.out))}; VideoDataset needs '
        f'data_prefix=dict(video={escape(repr(str(report.base)))}), '
        f'delimiter={DELIMITERS[report.delimiter]!r}',
        soft_wrap=True,
    )


def _missing_table(report: Report) -> Table:
    table = Table('class', title='Videos missing')
    for split in SPLITS:
        table.add_column(f'{split}: missing', justify='right')
        table.add_column('of', justify='right')
    missing = _count_labels(report.missing)
    for label in sorted(missing['train'] | missing['val']):
        counts = ((missing[split][label], report.listed[split][label]) for split in SPLITS)
        table.add_row(escape(label), *(str(number) for pair in counts for number in pair))
    return table


def _count_labels(clips: Iterable[Clip]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for clip in clips:
        counts[clip.split][clip.label] += 1
    return counts


def _check_splits(
    train: Sequence[Clip], val: Sequence[Clip], train_csv: Path, val_csv: Path
) -> dict[str, int]:
    """Returns the index of every label; validation may add no label and repeat no clip."""
    labels = {label: i for i, label in enumerate(sorted({clip.label for clip in train}))}
    lines = {clip.key: clip.line for clip in train}
    for clip in val:
        if clip.label not in labels:
            raise MiniKineticsError(
                f'{val_csv}:{clip.line}: column label: {clip.label!r} does not occur in {train_csv}'
            )
        if clip.key in lines:
            raise MiniKineticsError(
                f'{val_csv}:{clip.line}: column youtube_id: {clip.youtube_id} from '
                f'{clip.time_start} to {clip.time_end} s is also on line {lines[clip.key]} '
                f'of {train_csv}'
            )
    return labels


def _choose_delimiter(names: Collection[str], wanted: str) -> str:
    """Returns the key of a delimiter that ``VideoDataset`` can split every line at.

    It reads ``line.strip().split(delimiter)`` into exactly two parts: a path may not contain the
    delimiter, begin with white space or hold a line break.
    """
    for name in names:
        if _UNREADABLE.search(name):
            raise MiniKineticsError(
                f'{name!r}: VideoDataset cannot read a path that begins with white space, holds a '
                'line break or is not UTF-8; rename the file or its folder'
            )
    candidates = list(DELIMITERS) if wanted == 'auto' else [wanted]
    clashes = {}
    for key in candidates:
        clash = next((name for name in names if DELIMITERS[key] in name), None)
        if clash is None:
            return key
        clashes[key] = clash
    examples = '; '.join(f'{key} in {name!r}' for key, name in clashes.items())
    raise MiniKineticsError(
        f'VideoDataset would split paths at the delimiter: {examples}; rename these files or '
        'folders, or choose another --delimiter'
    )


def _to_csv(clips: Iterable[Clip]) -> str:
    """Returns clips in the form of the published files."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(COLUMNS)
    writer.writerows(clip.row for clip in clips)
    return text.getvalue()


def _write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        partial.write_text(text, encoding='utf-8', newline='')
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
