# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""An installation that does not fit together says which command mends it."""

import importlib.metadata
import importlib.util

import pytest

from vared2_mmaction.installation import check_installation

FITTING = {'mmcv-lite': '2.1.0', 'mmengine': '0.10.7', 'mmaction2': '1.2.0', 'torch': '2.13.0+cpu'}


@pytest.fixture
def installed(monkeypatch):
    """Pretends that exactly these releases are installed."""
    releases = dict(FITTING)

    def version(package):
        if package not in releases:
            raise importlib.metadata.PackageNotFoundError(package)
        return releases[package]

    monkeypatch.setattr(importlib.metadata, 'version', version)
    return releases


def test_this_installation_fits():
    check_installation()


@pytest.mark.parametrize('mmcv', ['mmcv', 'mmcv-lite'])
def test_either_mmcv_will_do(mmcv, installed):
    del installed['mmcv-lite']
    installed[mmcv] = '2.1.0'
    check_installation()


@pytest.mark.parametrize(
    ('package', 'command'),
    [
        ('mmcv-lite', "pip install 'mmcv-lite==2.1.0'"),
        ('mmcv-lite', "pip install --no-build-isolation 'mmcv==2.1.0'"),
        ('mmengine', "pip install 'mmengine"),
        ('mmaction2', "pip install 'mmaction2==1.2.0'"),
        ('torch', "pip install 'torch"),
    ],
)
def test_missing_package(package, command, installed):
    del installed[package]
    with pytest.raises(ImportError) as caught:
        check_installation()
    assert command in str(caught.value)
    assert package in str(caught.value)
    assert 'installed' in str(caught.value)


@pytest.mark.parametrize(
    ('package', 'found', 'command'),
    [
        ('mmcv', '2.2.0', "pip install 'mmcv-lite==2.1.0'"),
        ('mmcv-lite', '2.2.0', "pip install 'mmcv-lite==2.1.0'"),
        ('mmcv-lite', '1.7.2', "pip install 'mmcv-lite==2.1.0'"),
        ('mmaction2', '0.24.1', "pip install 'mmaction2==1.2.0'"),
        ('mmengine', '0.7.0', "pip install 'mmengine"),
        ('torch', '2.5.1', "pip install 'torch>=2.8'"),
        ('torch', '2.7.1+cu128', "pip install 'torch>=2.8'"),
    ],
)
def test_release_that_does_not_fit(package, found, command, installed):
    installed[package] = found
    with pytest.raises(ImportError) as caught:
        check_installation()
    assert command in str(caught.value)
    assert found in str(caught.value)


def test_missing_pkg_resources(installed, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        'find_spec',
        lambda name: None if name == 'pkg_resources' else find_spec(name),
    )
    with pytest.raises(ImportError, match="pip install 'setuptools<82'"):
        check_installation()
