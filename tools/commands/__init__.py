# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What commands have in common: their command line, what they check first, and how they test."""

import vared2_mmaction  # noqa: F401  (mends the installed releases before they are imported)
