# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Data sets: their lists and annotations, made by a command, and what reads them."""

from .decode_once import DecodeOnce

__all__ = ['DecodeOnce']
