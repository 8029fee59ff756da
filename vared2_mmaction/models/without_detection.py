# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Names of detection where the packages it needs are missing: they say what to install."""

from typing import Any, NoReturn

from mmaction.registry import MODELS

from ..installation import DETECTION_MISSING


# `_scope_ = 'mmdet'` of a config leads here too: MMEngine falls back to MMAction2's registry
# where there is no mmdet.
@MODELS.register_module(name=['VARED2AVARoIHead', 'AVARoIHead', 'FastRCNN'])
def refuse(**kwargs: Any) -> NoReturn:
    """Raise an ImportError that says what to install."""
    raise ImportError(DETECTION_MISSING)
