# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Settings of all tests."""

import pytest
import torch

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
