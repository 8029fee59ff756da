# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Pictures and a page of a test's dump, for ``visualize_policy.py``."""

import vared2_mmaction  # noqa: F401  (mends the installed releases before they are imported)
