# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Lists and annotations of data sets, in the formats that MMAction2 reads."""

import vared2_mmaction  # noqa: F401  (lets MMEngine write files whole)
