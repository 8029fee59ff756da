# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Freed memory is kept; in a process of its own, as it cannot be undone."""

import platform
import subprocess
import sys

import pytest

from vared2_mmaction.deploy import memory as heap

SCRIPT = """
import importlib.util
import sys
import torch

# The file alone: all that the package imports is not needed.
spec = importlib.util.spec_from_file_location('memory', sys.argv[1])
memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(memory)

def resident():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * 4096 / 2**20

def left():
    before = resident()
    x = torch.ones(2**26)
    assert resident() - before > 250
    del x
    return resident() - before

print(left())
assert memory.keep_freed_memory()
print(left())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='needs glibc')
def test_freed_memory():
    command = [sys.executable, '-W', 'ignore', '-c', SCRIPT, heap.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    as_ever, kept = map(float, done.stdout.split())
    assert as_ever < 250 < kept


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(heap.ctypes, 'CDLL', lambda name: object())
    assert not heap.keep_freed_memory()
