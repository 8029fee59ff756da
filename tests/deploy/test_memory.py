# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Freed memory is kept; in a process of its own, as it cannot be undone."""

import platform
import subprocess
import sys

import pytest

from vared2_mmaction.deploy import memory as heap

SCRIPT = """
import sys
import torch
from vared2_mmaction.deploy import keep_freed_memory

def resident():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * 4096 / 2**20

if sys.argv[1] == 'kept':
    assert keep_freed_memory()
before = resident()
x = torch.ones(2**26)
assert resident() - before > 250
del x
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='needs glibc')
@pytest.mark.parametrize(('how', 'kept'), [('kept', True), ('as ever', False)])
def test_freed_memory(how, kept):
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', SCRIPT, how],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (float(done.stdout) > 250) == kept


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(heap.ctypes, 'CDLL', lambda name: object())
    assert not heap.keep_freed_memory()
