# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Settings of all tests."""

import os

import pytest
import torch
import yapf  # noqa: F401  (writes its grammar before workers start, who would read half of it)

if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')  # read when Triton is imported

from .videos import write_videos


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    """One thread, so that tests do not disturb each other, and the same random numbers."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def videos(tmp_path_factory):
    """Folder of the tiny video set."""
    return write_videos(tmp_path_factory.mktemp('videos'))
