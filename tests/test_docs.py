# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The documentation, as far as it can be checked without building it."""

import ast
import functools
import importlib
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from .loading import SCRIPTS

ROOT = Path(__file__).parents[1]
README = ROOT / 'README.md'
PAGES = [README, ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
PACKAGE = ROOT / 'vared2_mmaction'
PACKAGES = [path.parent.name for path in sorted(PACKAGE.glob('*/__init__.py'))]
TOOLS = [f'tools/{name}' for name in SCRIPTS]
_FENCE = re.compile(r'^```(\w*)\n(.*?)^```', re.MULTILINE | re.DOTALL)
_LINK = re.compile(r'\]\(([^)\s]+)\)')
_HEADING = re.compile(r'^#+ (.*)$', re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return [code for name, code in _FENCE.findall(page.read_text()) if name == language]


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = _HEADING.findall(_FENCE.sub('', page.read_text()))
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Links to files or headings that are not there; those to the web are not followed."""
    broken = []
    for link in _LINK.findall(_FENCE.sub('', page.read_text())):
        if link.startswith(('http://', 'https://')):
            continue
        name, _, anchor = link.partition('#')
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


def test_broken_links_are_found(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('# A title: here\n[a](page.md) [b](#a-title-here) [c](gone.md) [d](#gone)\n')

    assert broken_links(page) == ['gone.md', '#gone']


@pytest.mark.parametrize('tool', TOOLS)
def test_every_tool_is_mentioned(tool):
    assert tool in (ROOT / 'docs' / 'tools.md').read_text()


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_named_tools_and_sources_exist(page):
    folders = 'tools|vared2_mmaction|configs|tests'
    named = re.findall(rf'(?<![\w/])(?:{folders})/[\w/-]+\.(?:py|sh)', page.read_text())
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_python_blocks_are_python(page):
    for code in blocks(page, 'python'):
        ast.parse(code)


def test_every_module_is_in_the_reference():
    """A module is there by itself, or its package is and exports all that it defines."""
    missing = []
    for package in PACKAGES:
        page = (ROOT / 'docs' / 'api' / f'{package}.rst').read_text()
        exported = (PACKAGE / package / '__init__.py').read_text()
        for path in sorted((PACKAGE / package).rglob('[!_]*.py')):
            name = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
            public = [
                node.name
                for node in ast.parse(path.read_text()).body
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != '_'
            ]
            alone = re.search(
                rf'^\.\. (auto\w+|py:module):: {re.escape(name)}(::|\.|$)', page, re.MULTILINE
            )
            if not alone and any(f"'{public_name}'" not in exported for public_name in public):
                missing.append(name)
    assert missing == []


def test_every_page_is_in_the_site():
    """Pages written by a tool, such as results.md, come in through the pattern."""
    toctree = (ROOT / 'docs' / 'index.md').read_text().partition('{toctree}')[2].split()
    assert {'tutorial', 'method', '[pr]e*', 'api/index'} <= set(toctree)
    pages = {page.stem for page in (ROOT / 'docs').glob('*.md')} - {'index'}
    assert {page for page in pages if not any(fnmatch(page, entry) for entry in toctree)} == set()
    assert {page for page in pages if f'docs/{page}.md' not in README.read_text()} == set()
    listed = re.findall(r'^\s+(\w+)$', (ROOT / 'docs' / 'api' / 'index.rst').read_text(), re.M)
    assert set(PACKAGES) <= set(listed)


def test_what_the_reference_names_one_by_one_is_there():
    named = r'^\.\. auto(?:class|function|module):: ([\w.]+?)(?:::(\w+))?$'
    found = [
        place
        for page in (ROOT / 'docs' / 'api').glob('*.rst')
        for place in re.findall(named, page.read_text(), re.M)
    ]
    assert len(found) > 50
    for module, name in found:
        if name:
            assert hasattr(importlib.import_module(module), name), (module, name)


def test_the_readme_names_the_commands_and_what_they_need():
    shell = '\n'.join(blocks(README, 'bash'))
    for command in ('make setup', 'make demo', 'make test', 'tools/train.py', 'tools/test.py'):
        assert command in shell
    text = README.read_text()
    for fact in ('US 2023/0082448 A1', 'Apache-2.0', '--no-optimize', '```bibtex'):
        assert fact in text


def crowded_sentences(text: str) -> list[str]:
    """Sentences outside of code and tables that have more than two numbers.

    Digits in names, such as I3D, R(2+1)D-18 or ``vared2``, are none; a version is one.
    """
    prose = re.sub(r'`[^`]*`|\]\([^)]*\)', '', _FENCE.sub('', text))
    lines = [line for line in prose.splitlines() if not line.startswith(('|', '#'))]
    sentences = re.split(r'(?<=[.:;?])\s+|\n\s*\n|\n- ', '\n'.join(lines))
    number = re.compile(r'(?<![\w.(+/-])\d+(?:[.,]\d+)*(?![\w+])')
    return [sentence for sentence in sentences if len(number.findall(sentence)) > 2]


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150
    assert crowded_sentences(README.read_text()) == []


def test_crowded_sentences_are_found():
    text = 'R(2+1)D-18 has 3 stages of I3D, 2.5 and 7 of them.\nTwo of 1.2.0 and 4.\n'
    assert crowded_sentences(text) == ['R(2+1)D-18 has 3 stages of I3D, 2.5 and 7 of them.']


OPTIONS = {
    'DynamicOptions': '`dynamic`',
    'SoftModulationGate': '`dynamic.gate`',
    'ComputationBudgetLoss': '`loss_budget`',
    'BudgetScheduleHook': 'Hooks',
    'FixOptionsHook': 'Hooks',
    'FreezeGatesHook': 'Hooks',
    'PruneOptionsHook': 'Hooks',
    'PolicyUsageHook': 'Hooks',
}
"""Classes that configs give options to, and the section of docs/options.md with their table."""
OF_THE_LAYER = {'in_channels', 'channel_options', 'temporal_options'}


@functools.cache
def classes() -> dict[str, ast.ClassDef]:
    """All classes of the package by name."""
    return {
        node.name: node
        for path in sorted(PACKAGE.rglob('*.py'))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    }


def options_of(name: str) -> dict[str, str | None]:
    """Names and defaults of what a class, or its base, is built with, or of a dataclass's fields.

    A default that is no literal is None, for the page says it in words.
    """
    found: dict[str, ast.expr | None] = {}
    for node in classes()[name].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node.value
        if isinstance(node, ast.FunctionDef) and node.name == '__init__':
            arguments = node.args.args[1:]
            required = [None] * (len(arguments) - len(node.args.defaults))
            found = dict(
                zip([a.arg for a in arguments], [*required, *node.args.defaults], strict=True)
            )
            break
    for base in classes()[name].bases if not found else ():
        if isinstance(base, ast.Name) and base.id in classes():
            return options_of(base.id)
    return {
        option: ast.unparse(value) if isinstance(value, ast.Constant) else None
        for option, value in found.items()
        if option not in OF_THE_LAYER
    }


def table_of(name: str) -> dict[str, str]:
    """Options and defaults of a class by docs/options.md."""
    sections = re.split(r'^## ', (ROOT / 'docs' / 'options.md').read_text(), flags=re.MULTILINE)
    (section,) = [s for s in sections if s.startswith(OPTIONS[name] + '\n')]
    if OPTIONS[name] == 'Hooks':
        parts = re.split(r'^(?=`\w+Hook` )', section, flags=re.MULTILINE)
        (section,) = [part for part in parts if part.startswith(f'`{name}` ')]
    return dict(re.findall(r'^\| `(\w+)` \| `?([^|`]+?)`? \|', section, re.MULTILINE))


@pytest.mark.parametrize('name', OPTIONS)
def test_every_option_is_in_the_table_with_its_default(name):
    options, table = options_of(name), table_of(name)
    assert set(table) == set(options)
    wrong = {o: (d, table[o]) for o, d in options.items() if d is not None and d != table[o]}
    assert wrong == {}
