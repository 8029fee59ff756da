# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Read a config file, and say in one line what is wrong with it, in which file and line."""

import os
import traceback
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mmengine.config import Config


def read_config_file(path: str | os.PathLike, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config, which is a program and may raise anything, and apply ``--cfg-options``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it, or a config that it inherits from, cannot be read; or an option does not
            fit.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'CONFIG={path!r}: no such file')
    try:
        cfg = Config.fromfile(path)
    except Exception as error:
        where, reason = _place(error, os.path.abspath(path)), _reason(error)
        raise ValueError(f'CONFIG={path!r} cannot be read: {where}: {reason}') from error
    merge_options(cfg, options)
    return cfg


def merge_options(cfg: Config, options: Mapping[str, Any] | None) -> None:
    """Replace settings by those of ``--cfg-options``, in place; a ValueError if one is wrong."""
    for key, value in (options or {}).items():
        name = key.split('.')[0]
        if name not in cfg and (meant := get_close_matches(name, cfg, 1, 0.9)):
            raise ValueError(f'--cfg-options {key}: there is no {name!r}; is {meant[0]!r} meant?')
        try:
            cfg.merge_from_dict({key: value})
        except Exception as error:
            raise ValueError(f'--cfg-options {key}={value!r}: {first_line(error)}') from error


def first_line(error: BaseException) -> str:
    """What an error says, with its kind where that is not plain; one line."""
    said = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    line = next(iter(said.strip().splitlines()), '')
    plain = isinstance(error, ValueError | OSError | ImportError | RuntimeError) and line
    return line if plain else f'{type(error).__name__}: {line}'


def _place(error: Exception, path: str) -> str:
    """The file, and where it is known its line, that could not be read."""
    line = None
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get('__name__') == 'mmengine.config.config':
            read = frame.f_locals.get('filename')
            # Not what is missing, nor the copy that MMEngine makes of a JSON or YAML file.
            if read is not None and str(read) != path and os.path.isfile(read):
                path, line = str(read), None
        elif frame.f_code.co_filename == path:
            line = number
    if isinstance(error, SyntaxError):
        line = error.lineno
    elif isinstance(error, FileNotFoundError) and error.filename is not None:
        name = os.path.basename(error.filename)
        lines = enumerate(Path(path).read_text('utf-8').splitlines(), start=1)
        line = next((number for number, text in lines if name in text), None)
    return path if line is None else f'{path}, line {line}'


def _reason(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f'{type(error).__name__}: {error.msg}'
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f'{error.filename!r}: no such file'
    if isinstance(error, ImportError):  # MMEngine tells where it looked, not what was missing
        while isinstance(inner := error.__cause__ or error.__context__, ImportError):
            error = inner
    return first_line(error)
