# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Checkpoints: read without executing anything, compared with the network, found again."""
