# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""NumPy values of a pickle, rebuilt without what NumPy lets a pickle do.

NumPy believes what a pickle says of a dtype: one whose fields are objects, or whose flags say that
there are none, makes it take numbers for addresses. Here a dtype is a kind, a size and an order of
bytes, and all else is refused.
"""

import functools
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np

_PLAIN = re.compile(r'[biufc]\d+')


class ForbiddenGlobalError(pickle.UnpicklingError):
    """A file asks for what no file of its kind holds."""


class PlainDtype:
    """Stands for ``numpy.dtype`` in a pickle: booleans, integers, floats and complex numbers."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not _PLAIN.fullmatch(code):
            raise _refused(f'dtype {_short(code)}')
        try:
            self.dtype = np.dtype(code)
        except TypeError as error:
            raise _refused(f'dtype {_short(code)}') from error

    def __setstate__(self, state: Any) -> None:
        """Takes the order of bytes; anything more is refused."""
        plain = isinstance(state, tuple) and len(state) in (8, 9) and state[0] in (3, 4)
        if not plain or state[1] not in ('<', '>', '|', '=') or state[2:8] != _NO_FIELDS:
            raise _refused(f'dtype {self.dtype.str} with state {_short(state)}')
        if any(state[8:]):
            raise _refused(f'dtype {self.dtype.str} with metadata')
        if state[1] in '<>':
            self.dtype = self.dtype.newbyteorder(state[1])


_NO_FIELDS = (None, None, None, -1, -1, 0)  # subarray, names, fields, size, alignment, flags


class PlainArray(np.ndarray):
    """Stands for ``numpy.ndarray`` in a pickle, and is one of a plain dtype."""

    __array_priority__ = -1.0  # what is computed with others is an ordinary array

    def __new__(cls) -> 'PlainArray':
        return super().__new__(cls, 0, np.int8)

    def __setstate__(self, state: Any) -> None:
        plain = isinstance(state, tuple) and len(state) == 5 and isinstance(state[2], PlainDtype)
        if not plain or not isinstance(state[4], bytes | str):
            raise _refused(f'an array with state {_short(state)}')
        super().__setstate__((*state[:2], state[2].dtype, *state[3:]))

    def __reduce__(self) -> Any:
        return np.asarray(self).__reduce__()


PlainDtype.__name__, PlainArray.__name__ = 'dtype', 'ndarray'  # as messages have it


def reconstruct(kind: Any, *_: Any) -> PlainArray:
    """Stands for ``numpy.core.multiarray._reconstruct``; shape and content come later."""
    if kind is not PlainArray:
        raise _refused(f'an array of class {_short(kind)}')
    return PlainArray()


def scalar(dtype: Any, content: Any = b'') -> Any:
    """Stands for ``numpy.core.multiarray.scalar``."""
    if isinstance(content, str):  # of Python 2
        content = content.encode('latin1')
    plain = isinstance(dtype, PlainDtype) and isinstance(content, bytes)
    if not plain or len(content) != dtype.dtype.itemsize:
        raise _refused(f'a number of dtype {_short(dtype)} from {_short(content)}')
    return np.frombuffer(content, dtype.dtype)[0]


def encode_latin1(text: Any, encoding: Any = None) -> bytes:
    """Stands for ``_codecs.encode``: pickles of protocol 2 spell bytes as text, with one codec."""
    if not isinstance(text, str) or encoding != 'latin1':
        raise _refused(f'codec {_short(encoding)}')
    return text.encode('latin1')


def no_bytes() -> bytes:
    """Stands for ``bytes``, which pickles of protocol 2 call for the content of an empty array."""
    return b''


def stand_ins() -> dict[str, Callable]:
    """What rebuilds numbers and arrays, by the names under which a pickle asks for NumPy's own.

    A pickle may also set attributes of what it got: no two get the same functions.
    """
    functions: dict[str, Callable] = {'_reconstruct': reconstruct, 'scalar': scalar}
    return {
        '__builtin__.bytes': functools.partial(no_bytes),  # by its old name
        'builtins.bytes': functools.partial(no_bytes),
        '_codecs.encode': functools.partial(encode_latin1),
        'numpy.dtype': PlainDtype,
        'numpy.ndarray': PlainArray,
        **{
            f'numpy.{core}.multiarray.{name}': functools.partial(function)
            for core in ('core', '_core')
            for name, function in functions.items()
        },
    }


def _refused(what: str) -> ForbiddenGlobalError:
    expected = 'only plain numbers and arrays of them are expected'
    return ForbiddenGlobalError(f'it asks for {what}; it is refused, as {expected}')


def _short(value: Any) -> str:
    """A value in few words; its own ``repr`` may be long, and is not to be trusted."""
    if isinstance(value, str | bytes | int | float | bool | None):
        return repr(value)[:60]
    if isinstance(value, tuple):
        return f'({", ".join(map(_short, value[:9]))})'[:200]
    return getattr(value, '__name__', None) or f'a {type(value).__name__}'
