# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Video sets for the demo, the study and the tests, drawn and not downloaded."""

import vared2_mmaction  # noqa: F401  (lets MMEngine write files whole)
