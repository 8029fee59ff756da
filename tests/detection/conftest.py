# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Tests of detection need mmcv's operators and mmdet: `make test-detection` runs them."""

import pytest

from vared2_mmaction.installation import has_detection

from .moving import write_project


@pytest.fixture(autouse=True, scope='session')
def _detection() -> None:
    if not has_detection():
        pytest.skip('detection is not installed here; `make test-detection` runs this test')


@pytest.fixture(scope='session')
def project(tmp_path_factory, _detection):
    """A tiny set of moving boxes, and a config and a checkpoint for it."""
    return write_project(tmp_path_factory.mktemp('project'))
