# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Check, before anything is imported, that the packages beside this one fit together."""

import importlib.metadata
import importlib.util

from packaging.version import Version

_RECOGNITION = "pip install 'mmcv-lite==2.1.0'"
_DETECTION = "pip install --no-build-isolation 'mmcv==2.1.0' (with operators, for detection)"


def check_installation() -> None:
    """Raise an ImportError that says which command mends the installation, if one is needed."""
    mmcv = _version('mmcv') or _version('mmcv-lite')
    if mmcv is None:
        raise ImportError(
            'vared2_mmaction needs mmcv, and neither mmcv-lite nor mmcv is installed: '
            f'{_RECOGNITION}, or {_DETECTION}'
        )
    _require('mmcv', mmcv, '2.0.0', '2.2.0', f'{_RECOGNITION}, or {_DETECTION}')
    for package, low, high, command in (
        ('mmengine', '0.10.0', '1.0.0', "pip install 'mmengine>=0.10.5,<1'"),
        ('mmaction2', '1.2.0', '1.3.0', "pip install 'mmaction2==1.2.0'"),
        ('torch', '2.4.0', '3.0.0', "pip install 'torch>=2.4'"),
    ):
        _require(package, _version(package), low, high, command)
    if importlib.util.find_spec('pkg_resources') is None:
        raise ImportError(
            'MMEngine imports pkg_resources, which setuptools has dropped since version 82: '
            "pip install 'setuptools<82'"
        )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _require(package: str, found: str | None, low: str, high: str, command: str) -> None:
    if found is None:
        raise ImportError(f'vared2_mmaction needs {package}, which is not installed: {command}')
    if not Version(low) <= Version(found) < Version(high):
        raise ImportError(
            f'vared2_mmaction needs {package}>={low},<{high}, but {found} is installed: {command}'
        )
