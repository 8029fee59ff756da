# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Tools, which are files outside the package, as modules."""

import importlib.util
from pathlib import Path
from types import ModuleType

TOOLS = Path(__file__).parents[1] / 'tools'
SCRIPTS = sorted(
    path.relative_to(TOOLS).as_posix()
    for path in TOOLS.rglob('*')
    if path.suffix in ('.py', '.sh') and not (path.parent / '__init__.py').exists()
)
"""What is run; what it imports are the modules of packages beside it."""


def load_tool(name: str) -> ModuleType:
    """The file of a tool as a module, without what it does when it is run."""
    spec = importlib.util.spec_from_file_location(f'loaded_{name}', TOOLS / f'{name}.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
