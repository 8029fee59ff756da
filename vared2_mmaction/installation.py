# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Check, before anything is imported, that the packages beside this one fit together."""

import importlib.metadata
import importlib.util

from packaging.version import Version

_RECOGNITION = "pip install 'mmcv-lite==2.1.0'"
_DETECTION = "pip install --no-build-isolation 'mmcv==2.1.0' (with operators, for detection)"

DETECTION_MISSING = (
    'action detection needs mmcv with its operators and mmdet, which are not installed here: '
    '`make setup-detection` makes an environment that has them; in one of your own, `pip uninstall '
    "mmcv-lite` and `MMCV_WITH_OPS=1 pip install --no-build-isolation '.[detection]'`"
)
"""What to say when a name of detection is used without them."""


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
        ('torch', '2.8.0', '3.0.0', "pip install 'torch>=2.8'"),
    ):
        _require(package, _version(package), low, high, command)
    if importlib.util.find_spec('pkg_resources') is None:
        raise ImportError(
            'MMEngine imports pkg_resources, which setuptools has dropped since version 82: '
            "pip install 'setuptools<82'"
        )


def has_detection() -> bool:
    """Whether the packages that detection needs are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ('mmdet', 'mmcv._ext'))


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
