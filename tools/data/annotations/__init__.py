# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Lists and annotations of published data sets, in the formats that MMAction2 reads."""
