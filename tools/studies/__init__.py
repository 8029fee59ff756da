# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The study: what is compared, its runs, and its report."""

import vared2_mmaction  # noqa: F401  (mends the installed releases before they are imported)
