# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Kinds of stock layers by PyTorch's public classes; their common bases are private.

They are tuples, because ``torch.compile`` of PyTorch 2.8 does not know unions.
"""

from torch import nn

TransposedConvolution = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
Convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TransposedConvolution)
"""Convolutions of all ranks, transposed ones too."""
