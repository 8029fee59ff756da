# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Where ``load_model`` was once."""

from .weights import load_model

__all__ = ['load_model']
