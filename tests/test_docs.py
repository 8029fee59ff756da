# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The documentation, as far as it can be checked without building it."""

import ast
import re
from pathlib import Path

import pytest

from .loading import SCRIPTS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
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
    readers = [ROOT / 'README.md', ROOT / 'docs' / 'tutorial.md']
    assert any(tool in page.read_text() for page in readers)


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
    toctree = (ROOT / 'docs' / 'index.md').read_text().partition('{toctree}')[2]
    assert {'tutorial', 'method', '[pr]e*', 'api/index'} <= set(toctree.split())
    listed = re.findall(r'^\s+(\w+)$', (ROOT / 'docs' / 'api' / 'index.rst').read_text(), re.M)
    assert set(PACKAGES) <= set(listed)
