# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Dynamic networks timed against stock ones."""

import vared2_mmaction  # noqa: F401  (mends the installed releases before they are imported)
