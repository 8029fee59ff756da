# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Kernels compile for a card that is not there: what the interpreter accepts, compilers may not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vared2_mmaction.executors import cuda

PROGRAM = """
import importlib.util
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# The file alone: all that the package imports is not needed.
spec = importlib.util.spec_from_file_location('mixing', sys.argv[1])
mixing = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mixing)

def check(kernel, constants, types):
    signature, known, aligned = {}, {}, {}
    for n, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], known[n,] = 'constexpr', constants[name]
            continue
        signature[name] = types.get(name, 'i32')
        if name in types or name in ('z_unit', 'y_unit', 'area'):
            aligned[n,] = [['tt.divisibility', 16]]
    source = ASTSource(kernel, signature, known, aligned)
    assert compile(source, target=GPUTarget('cuda', 90, 32)).asm['cubin']

maps = dict.fromkeys(('z', 'y', 'gradient', 'of_z'), '*bf16')
others = ('p', 'q', 'tables', 'sums', 'of_tables', 'of_shares')
types = {**maps, **dict.fromkeys(others, '*fp32')}
for own, temporal, last, given in ((3, (0, 1, 2), False, True), (2, (1,), True, False)):
    period, frames = 2 ** temporal[-1], 2 ** (temporal[-1] - temporal[0])
    sources = [(t >> j << j) >> temporal[0] for j in temporal for t in range(period)]
    sizes = {'OWN': own, 'OVER': len(temporal), 'FRAMES': frames, 'PERIOD': period}
    sizes |= {'HAS_P': given, 'HAS_Q': given}
    of_maps = {**sizes, 'SOURCES': sum(f << 4 * n for n, f in enumerate(sources)), 'LAST': last}
    of_maps |= {'VECTOR': 8 if last else 1, 'CHANNELS': 16 if last else 1, 'AREA': 32}
    reads = sum({1 << n % period * frames + f for n, f in enumerate(sources)})
    check(mixing.forward, {**of_maps, 'WHOLE': True}, types)
    check(mixing.backward_maps, {**of_maps, 'READS': reads}, types)
    options = sum(j << 2 * b for b, j in enumerate(temporal))
    sizes |= {'OPTIONS': options, 'CLIPS': 8, 'CHANNELS': 64}
    check(mixing.backward_factors, sizes, types)
print('compiled')
"""


@pytest.mark.skipif(not cuda.is_available(), reason='needs Triton')
def test_kernels_that_mix_compile_for_hopper(tmp_path):
    own = {'TRITON_INTERPRET': '0', 'TRITON_CACHE_DIR': str(tmp_path)}
    script = tmp_path / 'program.py'  # kernels are read from files, not this one
    script.write_text(PROGRAM)
    kernels = Path(cuda.__file__).with_name('mixing.py')
    command = [sys.executable, '-W', 'ignore', str(script), str(kernels)]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True)
    assert done.stdout.strip().endswith('compiled'), done.stderr[-2000:]
