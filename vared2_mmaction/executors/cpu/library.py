# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The C++ of ``native/``, compiled when it is first asked for."""

import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

SOURCES = Path(__file__).with_name('native')
_FLAGS = ['-O3', '-march=native', '-fopenmp', '-std=c++20']


def missing_tool() -> str | None:
    """What compiling needs and is not there; None if all is."""
    command = os.environ.get('CXX', '').split() or ['c++']  # with options, perhaps
    if shutil.which(command[0]) is None:
        return f'C++ compiler {command[0]!r} (CXX names another)'
    if shutil.which('ninja', path=_path_with_scripts()) is None:
        return 'ninja (pip install ninja)'
    return None


def is_available() -> bool:
    """Whether there is compiled code, or what it can be compiled with."""
    built = _built_in(build_folder())
    return missing_tool() is None or (built.is_file() and _is_whole(built))


@functools.cache
def library() -> Any:
    """The compiled code. Compiling takes about half a minute, once a machine and PyTorch.

    What is compiled already is loaded from where nobody may write and without a compiler.

    Raises:
        RuntimeError: If it has to be compiled and cannot be.
    """
    folder = build_folder()
    built, broken = _built_in(folder), ''
    try:
        return _load(built)
    except FileNotFoundError:
        pass
    except (ImportError, OSError) as error:
        broken = f'{str(built)!r} cannot be loaded ({error}), and '
    needs = 'compiled code needs a C++ compiler with C++20 and OpenMP, and ninja'
    if missing := missing_tool():
        raise RuntimeError(f'{needs}: {broken}there is no {missing}')
    with _alone_in(folder, broken):
        with suppress(ImportError, OSError):
            return _load(built)  # another process built it meanwhile
        try:
            return _build(folder, built)
        except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
            compiler = os.environ.get('CXX') or 'c++'
            raise RuntimeError(
                f'{needs}: {compiler!r} (CXX names another) cannot build {str(SOURCES)!r} in '
                f'{str(folder)!r}: {error}'
            ) from error


def _load(built: Path) -> Any:
    """The compiled code of a file, refused with an ImportError if that is not as it was built."""
    if not _is_whole(built):
        raise ImportError('it is not as it was built')
    spec = importlib.util.spec_from_file_location(built.stem, built)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _build(folder: Path, built: Path) -> Any:
    """Compile in a folder of its own, so that others never see half a file."""
    from torch.utils import cpp_extension

    build = folder / 'build'
    build.mkdir(exist_ok=True)
    # PyTorch's own lock is a file that a process which is killed leaves behind, for which all
    # others would wait forever.
    (build / 'lock').unlink(missing_ok=True)
    # PyTorch also takes for built what it failed to build before, in this process.
    cpp_extension.JIT_EXTENSION_VERSIONER.entries.pop(folder.name, None)
    files = [str(path) for path in sorted(SOURCES.glob('*.cpp'))]
    path = os.environ.get('PATH', '')
    os.environ['PATH'] = _path_with_scripts()
    try:
        module = cpp_extension.load(
            folder.name, files, extra_cflags=_FLAGS, build_directory=str(build)
        )
    finally:
        os.environ['PATH'] = path
    os.replace(build / built.name, built)
    _receipt_of(built).write_text(_digest(built))
    return module


def _built_in(folder: Path) -> Path:
    return folder / f'{folder.name}.so'


def _is_whole(built: Path) -> bool:
    """Whether a file is as it was built; loading one that was cut off can end the process."""
    digest = _digest(built)
    receipt = _receipt_of(built)
    return receipt.is_file() and receipt.read_text() == digest


def _receipt_of(built: Path) -> Path:
    return built.with_suffix('.sha256')


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def build_folder() -> Path:
    """Where the compiled code is kept.

    What sources, PyTorch, Python or processors differ in is compiled apart: a cache may be shared
    by several machines.
    """
    texts = (f'{path.name}\n{path.read_text()}' for path in sorted(SOURCES.glob('*.*')))
    python = str(sys.implementation.cache_tag)
    identity = '\n'.join((torch.__version__, python, _instructions(), *_FLAGS, *texts))
    name = f'vared2_{hashlib.sha256(identity.encode()).hexdigest()[:16]}'
    # Imported where it is needed: with CUDA it warns of a machine that has no GPU.
    from torch.utils import cpp_extension

    root = os.environ.get('TORCH_EXTENSIONS_DIR') or cpp_extension.get_default_build_root()
    return Path(root, name)


def _instructions() -> str:
    """What tells processors with other instructions apart."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(('flags', 'Features'))), '')


def _alone_in(folder: Path, broken: str) -> AbstractContextManager:
    """In this context one process builds, and the others wait."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / 'building').acquire()
    except OSError as error:
        raise RuntimeError(
            f'{broken}compiled code cannot be kept in {str(folder)!r}: '
            f'{error.strerror}; TORCH_EXTENSIONS_DIR names another folder'
        ) from error


def _path_with_scripts() -> str:
    """With ninja of an environment that is not activated."""
    return os.pathsep.join((os.environ.get('PATH', ''), sysconfig.get_path('scripts')))
