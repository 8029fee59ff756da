# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What a test dumped, for figures of it."""
