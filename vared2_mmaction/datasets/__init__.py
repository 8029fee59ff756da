# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Annotations of data sets, and what reads them."""

from .decode_once import DecodeOnce

__all__ = ['DecodeOnce']
