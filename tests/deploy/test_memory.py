# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Freed memory is kept; in a process of its own, as it cannot be undone."""

import multiprocessing
import platform

import pytest
import torch

from vared2_mmaction.deploy import keep_freed_memory
from vared2_mmaction.deploy import memory as heap


def resident():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def allocate_and_free(keep, pipe):
    torch.set_num_threads(1)
    kept = keep and keep_freed_memory()
    before = resident()
    x = torch.ones(2**26)
    there = resident() - before
    del x
    pipe.send((kept, there, resident() - before))


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='needs glibc')
@pytest.mark.parametrize('keep', [True, False], ids=['kept', 'as ever'])
def test_freed_memory(keep):
    told, pipe = multiprocessing.Pipe()
    fork = multiprocessing.get_context('fork').Process(target=allocate_and_free, args=(keep, pipe))
    fork.start()
    kept, there, left = told.recv()
    fork.join()
    assert kept == keep
    assert there > 250
    assert (left > 250) == keep


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(heap.ctypes, 'CDLL', lambda name: object())
    assert not heap.keep_freed_memory()
