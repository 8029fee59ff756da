# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What follows a convolution in a fused network, and can be done while its output is written."""

from typing import NamedTuple

import torch
from torch import Tensor


class Epilogue(NamedTuple):
    """A residual is added, then ReLU is applied; either may be left out."""

    residual: Tensor | None = None
    """Of the shape of the output."""
    relu: bool = False

    def __call__(self, y: Tensor) -> Tensor:
        """Apply to an output that nothing else reads: without gradients it is overwritten."""
        in_place = not torch.is_grad_enabled()
        if (residual := self.residual) is not None:
            y = y.add_(residual) if in_place and y.dtype == residual.dtype else y + residual
        if self.relu:
            y = y.relu_() if in_place else y.relu()
        return y


NOTHING = Epilogue()
