# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""A folder of videos of the user's, in place of the generated ones."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

_SPLITS = ('train', 'test')


@dataclass(frozen=True)
class Footage:
    """Videos with MMAction2's lists.

    Attributes:
        root: Folder with ``train.txt`` and ``test.txt``, lines of ``path label``; with
            ``classes.txt``, a name a line, or without. Paths are relative to its folder ``videos``,
            or to itself where there is none.

    Raises:
        ValueError: If the lists are not there, a line is another, a test video is there twice, or
            a class has no name.
    """

    root: Path

    def __post_init__(self) -> None:
        for split in _SPLITS:
            if not self.entries(split):
                raise ValueError(f'--data-root: {self.root / split}.txt names no video')
        names = [name for name, _ in self.entries('test')]
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise ValueError(f'--data-root: {self.root}/test.txt names {twice[0]!r} twice')
        most = max(label for split in _SPLITS for _, label in self.entries(split))
        if most >= len(self.classes):
            raise ValueError(
                f'--data-root: {self.root}/classes.txt: expected a name for each label, to {most}; '
                f'got {len(self.classes)}'
            )

    def entries(self, split: str) -> list[tuple[str, int]]:
        """Path and label of each video."""
        path = self.root / f'{split}.txt'
        if not path.is_file():
            raise ValueError(f'--data-root: expected a folder with {split}.txt, got {self.root}')
        found = []
        for line in path.read_text().splitlines():
            name, _, label = line.rpartition(' ')
            if not name or not label.isdecimal():
                raise ValueError(f'{path}: expected lines of "path label", got {line!r}')
            found.append((name, int(label)))
        return found

    @property
    def classes(self) -> list[str]:
        """Names of the classes; numbers where they have none."""
        path = self.root / 'classes.txt'
        if path.is_file():
            return path.read_text('utf-8-sig').splitlines()
        labels = [label for split in _SPLITS for _, label in self.entries(split)]
        return [str(label) for label in range(max(labels) + 1)]

    def settings(self) -> dict[str, Any]:
        """What tells these videos from others, whatever folder they are in."""
        lists = [self.entries(split) for split in _SPLITS]
        return {
            'name': self.root.resolve().name,
            **{split: len(entries) for split, entries in zip(_SPLITS, lists, strict=True)},
            'lists': hashlib.sha256(json.dumps(lists).encode()).hexdigest()[:16],
        }

    def test_facts(self) -> dict[str, dict[str, Any]]:
        """Label and class of each test video by name; which stand still is not known."""
        classes = self.classes
        return {
            name: {'label': label, 'class_name': classes[label], 'still': False}
            for name, label in self.entries('test')
        }

    def configure(self, cfg: Config) -> None:
        """Give a config the number of classes, and clips that span a video of any length."""
        cfg.model.cls_head.num_classes = len(self.classes)
        for split in _SPLITS:
            _span_videos(cfg[f'{split}_dataloader'].dataset.pipeline)


def _span_videos(steps: list[ConfigDict]) -> None:
    for i, step in enumerate(steps):
        if step.type == 'DecodeOnce':
            _span_videos(step.transforms)
        if step.type == 'SampleFrames':
            # The middle frames of equal parts, also in training: nothing random is decoded once.
            steps[i] = ConfigDict(
                type='UniformSample', clip_len=step.clip_len, num_clips=1, test_mode=True
            )


def test_facts(data: Path) -> dict[str, dict[str, Any]]:
    """Label, class and stillness of each test video of a generated or another set, by name."""
    try:
        videos = json.loads((data / 'meta.json').read_text())['videos']
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # it may be a file of the user's
        return Footage(data).test_facts()
    return {name: facts for name, facts in videos.items() if name.startswith('test/')}


test_facts.__test__ = False  # type: ignore[attr-defined]  # pytest: not a test
