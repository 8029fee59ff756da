# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Where and with what something was measured."""

import os
import platform

import mmaction
import mmcv
import mmengine
import torch

import vared2_mmaction


def processor() -> str:
    """Model of the CPU."""
    if os.path.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo') as file:
            for line in file:
                if line.startswith('model name'):
                    return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results may depend on."""
    return {
        'python': platform.python_version(),
        'torch': torch.__version__,
        'mmcv': mmcv.__version__,
        'mmaction2': mmaction.__version__,
        'mmengine': mmengine.__version__,
        'vared2_mmaction': vared2_mmaction.__version__,
    }
