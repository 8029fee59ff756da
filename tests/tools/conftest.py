# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What tests of several tools share."""

import pytest

from ..loading import load_tool


@pytest.fixture
def tester(tmp_path, monkeypatch):
    """``tools/test.py``, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    return load_tool('test')
