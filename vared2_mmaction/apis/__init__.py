# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What the command-line tools call, and inference on one video."""

from .inference import Recognition, load_inferencer, recognize

__all__ = ['Recognition', 'load_inferencer', 'recognize']
