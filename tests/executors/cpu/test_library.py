# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Compiled code is kept and found again, and what is missing is named."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vared2_mmaction.executors.cpu import library as module
from vared2_mmaction.executors.cpu.library import build_folder, is_available

from ...compiling import needs_compiler

SOURCE = """
#include <Python.h>
#define JOIN(a, b) a##b
#define INIT(name) JOIN(PyInit_, name)
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "tiny", nullptr, -1, nullptr};
PyMODINIT_FUNC INIT(TORCH_EXTENSION_NAME)() {
  PyObject* made = PyModule_Create(&definition);
  PyModule_AddIntConstant(made, "answer", 42);
  return made;
}
"""
pytestmark = needs_compiler


@pytest.fixture(autouse=True)
def sources(tmp_path, monkeypatch):
    """Sources that compile in a second, and a cache of their own."""
    sources = tmp_path / 'sources'
    sources.mkdir()
    (sources / 'tiny.cpp').write_text(SOURCE)
    monkeypatch.setattr(module, 'SOURCES', sources)
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', str(tmp_path / 'cache'))
    return sources


def library():
    return module.library.__wrapped__()


def built_file():
    folder = build_folder()
    return folder / f'{folder.name}.so'


@pytest.fixture(scope='module')
def built_once(tmp_path_factory):
    """A cache of what the sources, which lie elsewhere in each test, are compiled to."""
    folder = tmp_path_factory.mktemp('built')
    (folder / 'sources').mkdir()
    (folder / 'sources' / 'tiny.cpp').write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, 'SOURCES', folder / 'sources')
        patch.setenv('TORCH_EXTENSIONS_DIR', str(folder / 'cache'))
        library()
    return folder / 'cache'


@pytest.fixture
def built(built_once, sources):
    """The file of compiled code that is there already."""
    shutil.copytree(built_once, os.environ['TORCH_EXTENSIONS_DIR'])
    assert library().answer == 42
    return built_file()


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setenv('CXX', '/nowhere/g++ -pipe')


@pytest.fixture
def read_only(monkeypatch):
    """Lets nobody write into the cache; root may, whatever its mode."""

    def refuse(*args, **kwargs):
        raise PermissionError(13, 'Permission denied')

    for name in ('mkdir', 'write_text', 'unlink', 'touch'):
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr(module.FileLock, 'acquire', refuse)
    monkeypatch.setattr('torch.utils.cpp_extension.load', refuse)
    monkeypatch.setattr(os, 'replace', refuse)


def test_what_is_built_is_used_without_a_compiler_where_nobody_may_write(
    built, no_compiler, read_only
):
    before = sorted((path, path.stat().st_mtime_ns) for path in built.parent.rglob('*'))
    assert is_available()
    assert library().answer == 42
    assert before == sorted((path, path.stat().st_mtime_ns) for path in built.parent.rglob('*'))


def test_a_cache_mounted_read_only_is_used(built, no_compiler):
    """In a process of its own, as the machines that share a cache have."""
    code = f"""
import importlib.util
from pathlib import Path
spec = importlib.util.spec_from_file_location('library', {module.__file__!r})
library = importlib.util.module_from_spec(spec)
spec.loader.exec_module(library)
library.SOURCES = Path({str(module.SOURCES)!r})
assert library.library().answer == 42
"""
    mounted = f'mount --bind -o ro "$0" "$0" && exec {sys.executable} -c "$1"'
    unshare = ['unshare', '--mount', '--map-root-user', 'bash', '-c']
    if shutil.which('unshare') is None or subprocess.run([*unshare, 'true']).returncode:
        pytest.skip('needs to mount')
    cache = os.environ['TORCH_EXTENSIONS_DIR']
    subprocess.run([*unshare, mounted, cache, code], check=True)


def test_a_folder_nobody_may_write_into_is_named(read_only):
    with pytest.raises(RuntimeError) as caught:
        library()
    said = str(caught.value)
    assert repr(str(build_folder())) in said
    assert 'Permission denied; TORCH_EXTENSIONS_DIR names another folder' in said
    assert 'compiler' not in said


def test_a_missing_compiler_is_named(no_compiler):
    assert not is_available()
    with pytest.raises(RuntimeError, match=r"there is no C\+\+ compiler '/nowhere/g\+\+' \(CXX"):
        library()


def test_missing_ninja_is_named(monkeypatch, tmp_path):
    (tmp_path / 'c++').symlink_to(shutil.which('c++') or '')
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setattr('sysconfig.get_path', lambda _: str(tmp_path))
    assert not is_available()
    with pytest.raises(RuntimeError, match=r'there is no ninja \(pip install ninja\)$'):
        library()


def test_a_compiler_that_does_not_compile_is_named(monkeypatch):
    monkeypatch.setenv('CXX', 'false')
    for _ in range(2):
        with pytest.raises(RuntimeError, match="'false' .CXX names another. cannot build"):
            library()


def test_an_error_of_the_compiler_is_told_as_often_as_it_happens(sources):
    (sources / 'tiny.cpp').write_text('#error wrong\n')
    for _ in range(2):
        with pytest.raises(RuntimeError, match='#error wrong'):
            library()


def put(built, content):
    """Put another file in the place of one that this process has loaded."""
    os.remove(built)
    with open(built, 'wb') as file:
        file.write(content)


def damage(built, kind):
    content = bytearray(built.read_bytes())
    if kind == 'cut off':
        put(built, content[: len(content) // 2])
    elif kind == 'empty':
        put(built, b'')
    elif kind == 'changed':
        content[len(content) // 2] ^= 0xFF
        put(built, content)
    else:
        module._receipt_of(built).unlink()


DAMAGES = ['cut off', 'empty', 'changed', 'without receipt']


@pytest.mark.parametrize('kind', DAMAGES)
def test_broken_code_is_built_again(kind, built):
    damage(built, kind)
    assert library().answer == 42
    assert module._is_whole(built)


@pytest.mark.parametrize('kind', DAMAGES)
def test_broken_code_that_cannot_be_built_again_is_named(kind, built, no_compiler):
    damage(built, kind)
    assert not is_available()
    with pytest.raises(RuntimeError) as caught:
        library()
    expected = f'{str(built)!r} cannot be loaded (it is not as it was built), and there is no C++'
    assert expected in str(caught.value)


def test_broken_code_in_a_folder_nobody_may_write_into_is_named(built, read_only):
    put(built, b'broken')
    with pytest.raises(RuntimeError) as caught:
        library()
    assert f'{str(built)!r} cannot be loaded' in str(caught.value)
    assert 'Permission denied; TORCH_EXTENSIONS_DIR' in str(caught.value)


def test_code_of_another_machine_is_built_again(built):
    """It is whole, and yet cannot be loaded."""
    put(built, b'\x7fELF of another machine')
    module._receipt_of(built).write_text(module._digest(built))
    assert library().answer == 42


def test_a_build_that_was_killed_holds_nobody_up():
    build = build_folder() / 'build'
    build.mkdir(parents=True)
    (build / 'lock').touch()  # PyTorch's, which waits until it is gone
    assert library().answer == 42


def test_what_is_built_is_that_of_the_sources_wherever_they_lie(built, tmp_path, monkeypatch):
    moved = shutil.copytree(module.SOURCES, tmp_path / 'moved')
    monkeypatch.setattr(module, 'SOURCES', moved)
    assert built_file() == built
    (moved / 'tiny.cpp').write_text(SOURCE.replace('42', '43'))
    assert built_file() != built
    assert library().answer == 43
