# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Where, and by which sources, something was measured."""

import ast
import hashlib
import os
import platform
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def processor() -> str:
    """Model of the CPU."""
    if os.path.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo') as file:
            for line in file:
                if line.startswith('model name'):
                    return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


def source_hash(*folders: str) -> str:
    """Hash of the Python sources in subpackages of this package, comments and layout left out."""
    digest = hashlib.sha256()
    for folder in folders:
        paths = sorted((_PACKAGE / folder).rglob('*.py'))
        if not paths:
            raise FileNotFoundError(f'{folder!r}: expected a subpackage of {_PACKAGE.name}')
        for path in paths:
            digest.update(path.relative_to(_PACKAGE).as_posix().encode())
            digest.update(ast.dump(ast.parse(path.read_text())).encode())
    return digest.hexdigest()[:16]
