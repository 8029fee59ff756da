# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What is wrong with what a user gave: options of a config, and files."""

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

_KINDS: dict[type, type] = {int: Integral, float: Real, dict: Mapping}


class FileError(RuntimeError):
    """A file of the user's cannot be used; the message names it."""


class Expected(NamedTuple):
    """What an option may be."""

    kind: type
    """``int``, also for NumPy's, ``float`` for any number, ``dict`` for any mapping, or another
    class. Truth values are no numbers, and neither is NaN."""
    words: str
    """The same in words."""
    holds: Callable[[Any], bool] = lambda value: True
    """What a value of that kind has to meet."""
    or_none: bool = False


FLAG = Expected(bool, 'True or False')
COUNT = Expected(int, 'a whole number from 1 on', lambda n: n >= 1)
AT_LEAST_0 = Expected(float, 'a number from 0 on', lambda x: 0 <= x < math.inf)
SHARE = Expected(float, 'a number between 0 and 1', lambda x: 0 < x < 1)
OPTIONS = Expected(dict, 'options, dict(...)')


def check(key: str, value: Any, expected: Expected) -> None:
    """Refuse the value of an option with a ValueError that names key, value and what was expected.

    ``key`` is the full name, such as 'dynamic.gate.floor'. Nothing is converted, least of all text
    to numbers.
    """
    kind, words, holds, or_none = expected
    if or_none and value is None:
        return
    of_kind = isinstance(value, _KINDS.get(kind, kind)) and isinstance(value, bool) == (
        kind is bool
    )
    if not of_kind or value != value or not holds(value):
        raise ValueError(f'{key}={value!r}: expected {words}{" or None" * or_none}')


def given_options(key: str, options: Any) -> Mapping[str, Any]:
    """Options as a user gave them, none for None; a ValueError if they are no mapping."""
    if options is None:
        return {}
    check(key, options, OPTIONS)
    return options


def check_arguments(
    key: str, options: Any, function: Callable, given: Collection[str] = ()
) -> None:
    """Raise a ValueError for options that are no mapping, or that a function does not take.

    ``key`` is their name; ``given`` are arguments of the function that are not the user's to give.
    """
    check(key, options, OPTIONS)
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = sorted(parameter.name for parameter in parameters if parameter.name not in given)
    if unknown := [option for option in options if option not in (*known, 'type')]:
        raise ValueError(f'{key} has an unknown option {unknown[0]!r}: expected {known}')
