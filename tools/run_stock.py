# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Runs a tool of MMAction2, or any script, with vared2_mmaction imported before.

Some tools import MMAction2 before they read the config that would import that package, and
MMAction2 1.2.0 cannot be imported without what is mended there.
"""

import argparse
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import mmaction

import vared2_mmaction  # noqa: F401, as that is what it is for
from commands.cli import run_tool

STOCK = Path(mmaction.__file__).parent / '.mim'


def find_tool(name: str) -> str:
    """The path of a script, or of one of MMAction2's by its name in MMAction2's repository."""
    for path in (Path(name), STOCK / name):
        if path.is_file():
            return str(path)
    folder = (STOCK / name).parent
    known = sorted(path.relative_to(STOCK).as_posix() for path in folder.glob('*.py'))
    expected = known or ['tools/misc/clip_feature_extraction.py']
    raise FileNotFoundError(
        f'TOOL={name!r}: no such file; expected a script, or one of MMAction2 such as '
        f'{", ".join(expected)}'
    )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'tool', metavar='TOOL', help='such as tools/misc/clip_feature_extraction.py'
    )
    parser.add_argument('arguments', metavar='...', nargs=argparse.REMAINDER, help='of the tool')
    return parser


def prepare(args: argparse.Namespace) -> None:
    """Let it look as if the tool were run by itself."""
    tool = find_tool(args.tool)
    sys.argv = [tool, *args.arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(tool))


def main(argv: Sequence[str] | None = None) -> None:
    run_tool(build_parser(), prepare, argv)
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
