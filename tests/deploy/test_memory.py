# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Freed memory is kept; in a fork of this process, as it cannot be undone."""

import multiprocessing
import platform

import pytest
import torch

from vared2_mmaction.deploy import keep_freed_memory
from vared2_mmaction.deploy import memory as heap


def resident():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def left(queue):
    """What is left of 256 MiB that were freed, as ever and where they are kept."""
    torch.set_num_threads(1)  # threads of libraries are not forked
    for kept in (False, True):
        assert not kept or keep_freed_memory()
        before = resident()
        x = torch.ones(2**26)
        assert resident() - before > 250
        del x
        queue.put(resident() - before)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='needs glibc')
def test_freed_memory():
    context = multiprocessing.get_context('fork')
    queue = context.SimpleQueue()
    process = context.Process(target=left, args=(queue,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    as_ever, kept = queue.get(), queue.get()
    assert as_ever < 250 < kept


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(heap.ctypes, 'CDLL', lambda name: object())
    assert not heap.keep_freed_memory()
