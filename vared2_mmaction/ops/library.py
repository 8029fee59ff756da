# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The C++ of ``native/``, compiled when it is first asked for."""

import functools
import hashlib
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch.utils import cpp_extension

SOURCES = Path(__file__).with_name('native')
_FLAGS = ['-O3', '-march=native', '-fopenmp', '-std=c++20']


def can_compile() -> bool:
    """Whether there is a C++ compiler."""
    command = os.environ.get('CXX', '').split() or ['c++']  # with options, perhaps
    return shutil.which(command[0]) is not None


@functools.cache
def library() -> Any:
    """The compiled code. Compiling takes about half a minute, once a machine and PyTorch.

    Raises:
        RuntimeError: If it cannot be compiled.
    """
    folder = build_folder()
    files = [str(path) for path in sorted(SOURCES.glob('*.cpp'))]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # One process builds, and the others wait. PyTorch's own lock is a file that a process which
        # is killed leaves behind, for which all others would wait forever.
        with FileLock(folder / 'building'), _scripts_on_path():
            (folder / 'lock').unlink(missing_ok=True)
            return cpp_extension.load(
                folder.name, files, extra_cflags=_FLAGS, build_directory=str(folder)
            )
    except (RuntimeError, OSError, ImportError) as error:
        raise RuntimeError(
            'compiled=True needs a C++ compiler (g++ or clang++ with OpenMP; CXX names it) and '
            f'ninja: {error}'
        ) from error


def build_folder() -> Path:
    """Where the compiled code is kept.

    What sources, PyTorch, Python or processors differ in is compiled apart: a cache may be shared
    by several machines.
    """
    texts = (f'{path}\n{path.read_text()}' for path in sorted(SOURCES.glob('*.*')))
    python = str(sys.implementation.cache_tag)
    identity = '\n'.join((torch.__version__, python, _instructions(), *_FLAGS, *texts))
    name = f'vared2_{hashlib.sha256(identity.encode()).hexdigest()[:16]}'
    root = os.environ.get('TORCH_EXTENSIONS_DIR') or cpp_extension.get_default_build_root()
    return Path(root, name)


def _instructions() -> str:
    """What tells processors with other instructions apart."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(('flags', 'Features'))), '')


@contextmanager
def _scripts_on_path() -> Iterator[None]:
    """With ninja of an environment that is not activated."""
    before = os.environ.get('PATH', '')
    os.environ['PATH'] = os.pathsep.join((before, sysconfig.get_path('scripts')))
    try:
        yield
    finally:
        os.environ['PATH'] = before
