# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Data sets for the demo, the tests and quick studies, made by a command."""

from .decode_once import DecodeOnce

__all__ = ['DecodeOnce']
