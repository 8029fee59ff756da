# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Layers executed by Triton kernels that read the decisions of gates on the GPU.

The host never waits for an answer: what a clip does not need is left out by the kernels
themselves, so that a whole network can be replayed as one CUDA graph.
"""
