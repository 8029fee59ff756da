# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Dumps of tests, and pictures of what layers decided: of a dump for ``visualize_policy.py``, of a
video for ``demo.py``."""

import vared2_mmaction  # noqa: F401  (mends the installed releases before they are imported)
