# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What reads data sets."""

from .decode_once import DecodeOnce

__all__ = ['DecodeOnce']
