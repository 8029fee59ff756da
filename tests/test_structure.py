# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What is not the product lies beside the package, and imports run from there to the package."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, TOOLS = ROOT / 'vared2_mmaction', ROOT / 'tools'
OURS = {path.parent.name for path in TOOLS.glob('*/__init__.py')}
BELOW = {'synthetic': set(), 'benchmarking': set(), 'studies': {'synthetic', 'benchmarking'}}
"""Packages of tools that each may import."""
SCRIPTS = {path.stem for path in TOOLS.rglob('*.py') if path.parent.name not in OURS}
MAKERS = ('study', 'benchmark', 'plot_scaling', 'run_demo', 'make_moving_shapes')


def imported(path: Path) -> set[str]:
    """First parts of the names of modules that a file imports, relative ones left out."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition('.')[0])
    return found


def test_the_package_imports_nothing_of_tools():
    files = {path.relative_to(ROOT): imported(path) for path in PACKAGE.rglob('*.py')}
    assert len(files) > 50
    assert {path: names & (OURS | SCRIPTS | {'tools'}) for path, names in files.items()} == (
        dict.fromkeys(files, set())
    )


def test_packages_of_tools_import_what_is_below_them():
    assert set(BELOW) == OURS
    for name, below in BELOW.items():
        for path in (TOOLS / name).rglob('*.py'):
            assert imported(path) & (OURS | SCRIPTS) <= below, path


def test_importing_the_package_loads_no_studies():
    """Nor what draws videos, times networks, or only a study registers."""
    code = (
        'import sys, vared2_mmaction.apis, vared2_mmaction.visualization.page\n'
        'from mmaction.registry import MODELS\n'
        "names = {name.rpartition('.')[2] for name in sys.modules if name.startswith('vared2_')}\n"
        'print(sorted(names & set(sys.argv[1:])), "RandomPolicyGate" in MODELS)'
    )
    moved = {path.stem for name in OURS for path in (TOOLS / name).glob('[!_]*.py')}
    moved -= {path.stem for path in PACKAGE.rglob('*.py')}
    assert len(moved) > 15
    done = subprocess.run(
        [sys.executable, '-c', code, *moved], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == '[] False'


@pytest.mark.parametrize('name', MAKERS)
def test_tools_find_their_packages_from_anywhere(name, tmp_path):
    """Also where a wheel puts them: nothing but the folder itself is there."""
    shutil.copytree(
        TOOLS, tmp_path / '.mim' / 'tools', ignore=shutil.ignore_patterns('__pycache__')
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / '.mim' / 'tools' / f'{name}.py'), '--help'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f'usage: {name}.py')
