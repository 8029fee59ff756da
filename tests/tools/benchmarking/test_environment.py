# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Where something was measured."""

from benchmarking import environment


def test_processor_has_a_name():
    assert environment.processor().strip()
