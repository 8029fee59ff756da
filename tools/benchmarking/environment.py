# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Where something was measured."""

import os
import platform


def processor() -> str:
    """Model of the CPU."""
    if os.path.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo') as file:
            for line in file:
                if line.startswith('model name'):
                    return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()
