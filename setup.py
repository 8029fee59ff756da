# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Build step that puts configs and tools into the wheel; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_FOLDERS = ('configs', 'tools')


def mim_files() -> list[str]:
    """Lists the files of configs and tools, relative to the repository root."""
    return [
        path.relative_to(ROOT).as_posix()
        for folder in MIM_FOLDERS
        for path in sorted((ROOT / folder).rglob('*'))
        if path.is_file() and '__pycache__' not in path.parts
    ]


class BuildWithMim(build_py):
    """Copies configs and tools to ``vared2_mmaction/.mim``, where OpenMMLab's ``mim`` looks.

    Only wheels carry that folder. An editable install is a checkout: configs and tools are
    found at its root.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        shutil.rmtree(self._mim_root(), ignore_errors=True)  # build/ may hold an earlier build
        for name, target in zip(mim_files(), self._mim_outputs(), strict=True):
            self.mkpath(str(Path(target).parent))
            self.copy_file(str(ROOT / name), target)

    def get_source_files(self) -> list[str]:
        """Also names what ``run`` copies, so that source distributions contain it."""
        return super().get_source_files() + mim_files()

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        outputs = super().get_outputs(include_bytecode)
        return outputs if self.editable_mode else outputs + self._mim_outputs()

    def _mim_root(self) -> Path:
        return Path(self.build_lib, 'vared2_mmaction', '.mim')

    def _mim_outputs(self) -> list[str]:
        return [str(self._mim_root() / name) for name in mim_files()]


setup(cmdclass={'build_py': BuildWithMim})
