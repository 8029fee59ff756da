# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Names of classes and of actions."""

import os
from collections.abc import Sequence

from mmaction.evaluation import read_labelmap

BACKGROUND = 'background'
"""Class 0 of a detector, which no action has."""


def read_classes(path: str | None, number: int | None) -> list[str]:
    """Names of the classes of a recognizer, one a line of a file; numbers without a file.

    Where ``number`` is None, the file may have any number of names.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has names for another number of classes, or is no text.
    """
    if path is None:
        return [str(label) for label in range(number or 0)]
    return _checked(path, _read_lines(path), number, 'classes')


def read_actions(
    path: str | None, number: int, custom_classes: Sequence[int] | None = None
) -> list[str]:
    """Names of the classes of a detector: the background, then the actions.

    Args:
        path: A label map of AVA (``name: "..."`` and ``id: ...``), in which actions may lack, or
            names of all actions, one a line, from action 1 on; None numbers them.
        number: How many classes there are, with the background.
        custom_classes: Numbers in the label map of the classes from 1 on, if they are others.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has names for other actions, or is no text.
    """
    if path is None:
        return [BACKGROUND, *(str(action) for action in range(1, number))]
    lines = _read_lines(path)
    if not any(line.lstrip().startswith('name:') for line in lines):
        return [BACKGROUND, *_checked(path, lines, number - 1, 'actions')]
    try:
        names = {item['id']: item['name'] for item in read_labelmap(lines)[0]}
    except (IndexError, ValueError) as error:
        raise ValueError(f'LABELS={path!r}: expected a label map of AVA ({error})') from error
    last = max(names, default=0)
    if not names or (custom_classes is None and last >= number):
        found = f'action {last}' if names else 'no action'
        raise ValueError(f'LABELS={path!r}: found {found}, expected 1 to {number - 1}')
    numbers = custom_classes or range(1, number)
    return [BACKGROUND, *(names.get(action, str(action)) for action in numbers)]


def _checked(path: str, names: list[str], number: int | None, what: str) -> list[str]:
    if number not in (None, len(names)):
        raise ValueError(
            f'LABELS={path!r}: found {len(names)} names, expected {number} {what}, one a line'
        )
    return [name.strip() for name in names]


def _read_lines(path: str) -> list[str]:
    if not os.path.isfile(path):
        raise FileNotFoundError(f'LABELS={path!r}: no such file')
    try:
        with open(path, encoding='utf-8-sig') as file:
            return [line.rstrip() for line in file.read().rstrip().split('\n')]
    except UnicodeDecodeError as error:
        raise ValueError(f'LABELS={path!r}: expected text in UTF-8: {error}') from error
