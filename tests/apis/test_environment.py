# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The hash of sources changes with what they do, not with how they are laid out."""

import pytest

from vared2_mmaction.apis import environment


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, '_PACKAGE', tmp_path)
    (tmp_path / 'ops').mkdir()
    (tmp_path / 'ops' / 'a.py').write_text('x = 1\n')
    return tmp_path


def test_hash_of_sources(package):
    path = package / 'ops' / 'a.py'
    first = environment.source_hash('ops')
    path.write_text('# why\nx  =  1\n\n')
    assert environment.source_hash('ops') == first
    path.write_text('x = 2\n')
    assert environment.source_hash('ops') != first
    path.write_text('x = 1\n')
    path.rename(package / 'ops' / 'b.py')
    assert environment.source_hash('ops') != first


def test_folder_without_sources(package):
    with pytest.raises(FileNotFoundError, match="'models': expected a subpackage"):
        environment.source_hash('ops', 'models')


def test_processor_has_a_name():
    assert environment.processor().strip()
