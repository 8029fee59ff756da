# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Inference on one video, and networks of a config."""

from .detection import Detection, detect, load_detector
from .inference import Recognition, load_inferencer, recognize
from .weights import load_model

__all__ = [
    'Detection',
    'Recognition',
    'detect',
    'load_detector',
    'load_inferencer',
    'load_model',
    'recognize',
]
