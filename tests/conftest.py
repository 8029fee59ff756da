# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Settings of all tests."""

import functools
import gc
import logging
import os
from collections.abc import Iterator

import pytest
import torch
from mmengine.config import config
from mmengine.config import utils as config_utils
from mmengine.registry import DefaultScope, init_default_scope

if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')  # read when Triton is imported
# MMEngine, above, imports yapf, which writes its grammar: workers, started later, read it whole.

from .videos import write_videos

# MMEngine's loggers write to the captured output of the test that made them, which later tests find
# closed; logging would say so on their error output.
logging.raiseExceptions = False
# Every runner lets yapf lay out the text of its config several times, which takes half of the time
# of a short training. The text as it is says the same.
config.FormatCode = lambda text, **_: (text, True)
# For every base "mmaction::..." MMEngine reads the metafiles of all networks of MMAction2, and what
# is installed: more than half of the time of reading a recipe.
config_utils.load = functools.cache(config_utils.load)
config.is_installed = functools.cache(config.is_installed)


def pytest_collection_finish() -> None:
    """What is imported stays: where MMEngine collects garbage, which it does for every data set, it
    need not look through all of that. Networks are built and copied all the time: Python, too, need
    not look for garbage as often."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    """One thread, so that tests do not disturb each other, and the same random numbers."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _same_scope() -> Iterator[None]:
    """The scope of registries as it was: a runner whose config names none makes it MMEngine's."""
    before = DefaultScope.get_current_instance()
    yield
    if before is not None and DefaultScope.get_current_instance() is not before:
        init_default_scope(before.scope_name)


@pytest.fixture(scope='session')
def videos(tmp_path_factory):
    """Folder of the tiny video set."""
    return write_videos(tmp_path_factory.mktemp('videos'))
