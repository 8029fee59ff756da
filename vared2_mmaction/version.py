# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The version, in a module of its own so that the build reads it without importing the package."""

__version__ = '0.1.0'
