# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Multiply-adds of networks, stage by stage, and the clips that they are counted for."""

import vared2_mmaction  # noqa: F401  (mends the installed releases before they are imported)
