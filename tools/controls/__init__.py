# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Networks tested with other gate outputs, for ``test.py --controls`` and the study."""

import vared2_mmaction  # noqa: F401  (mends the installed releases before they are imported)
