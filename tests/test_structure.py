# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What is not the product lies beside the package, and imports run from there to the package."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .loading import SCRIPTS, TOOLS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'vared2_mmaction'
OURS = {path.parent.name for path in TOOLS.glob('*/__init__.py')}
BELOW = {
    'annotations': set(),
    'commands': set(),
    'synthetic': {'annotations'},
    'benchmarking': {'counting'},
    'controls': set(),
    'counting': {'commands'},
    'policy_report': {'annotations'},
    'studies': {'synthetic', 'benchmarking', 'commands', 'controls', 'counting', 'policy_report'},
}
"""Packages of tools that each may import."""
NAMES = {Path(name).stem for name in SCRIPTS}
PROBE = """
import runpy, sys
from pathlib import Path
import vared2_mmaction.apis
from mmaction.registry import MODELS

ours = (
    'annotations', 'benchmarking', 'commands', 'controls', 'counting', 'policy_report', 'studies',
    'synthetic',
)
others = {'torch.jit.annotations'}
parts = lambda: {part for name in sys.modules.keys() - others for part in name.split('.')}
print(sorted(parts() & {*ours, 'random_gate', 'moving_shapes'}), 'RandomPolicyGate' in MODELS)
for script in sys.argv[1:]:
    path = Path(__file__).parent / script
    sys.path[0] = str(path.parent)
    runpy.run_path(str(path), run_name='loaded')
print(sorted(parts() & set(ours)), 'RandomPolicyGate' in MODELS)
print(*(Path(sys.modules[name].__file__).parent for name in ours), sep='\\n')
"""


def imported(path: Path) -> set[str]:
    """First parts of the names of modules that a file imports, relative ones left out."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition('.')[0])
    return found


@pytest.mark.fast
def test_the_package_imports_nothing_of_tools():
    files = {path.relative_to(ROOT): imported(path) for path in PACKAGE.rglob('*.py')}
    assert len(files) > 50
    wrong = {path: names & (OURS | NAMES | {'tools'}) for path, names in files.items()}
    assert {path: names for path, names in wrong.items() if names} == {}


@pytest.mark.fast
def test_relative_imports_name_what_there_is():
    """Also in modules whose own requirements are not installed here, such as mmdet."""
    for path in PACKAGE.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                folder = path.parents[node.level - 1].joinpath(*(node.module or '').split('.'))
                module = folder.with_suffix('.py') if node.module else folder / '__init__.py'
                assert module.is_file() or (folder / '__init__.py').is_file(), (path, node.module)


@pytest.mark.fast
def test_packages_of_tools_import_what_is_below_them():
    assert set(BELOW) == OURS
    for name, below in BELOW.items():
        for path in (TOOLS / name).rglob('*.py'):
            assert imported(path) & (OURS | NAMES) <= below, path


def test_tools_find_their_packages_from_anywhere(tmp_path):
    """Also where a wheel puts them. The package alone loads and registers nothing of them."""
    tools = tmp_path / '.mim' / 'tools'
    shutil.copytree(TOOLS, tools, ignore=shutil.ignore_patterns('__pycache__'))
    (tools / 'probe.py').write_text(PROBE)
    (tmp_path / 'site').mkdir()
    # Those of a folder first: what the others import would be there already.
    scripts = sorted((s for s in SCRIPTS if s.endswith('.py')), key=lambda s: '/' not in s)
    (tmp_path / 'site' / PACKAGE.name).symlink_to(PACKAGE)
    done = subprocess.run(
        [sys.executable, str(tools / 'probe.py'), *scripts],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(tmp_path / 'site')},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    before, after, *folders = done.stdout.splitlines()
    assert before == '[] False'
    assert after == f'{sorted(OURS)} True'
    assert set(folders) == {str(tools / name) for name in OURS}
