# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Small checkpoints, as MMEngine's Runner writes them."""

from typing import Any

import torch
from mmengine.logging import MessageHub
from torch import nn


def content(epoch: int = 1, iteration: int = 2, **changes: Any) -> dict[str, Any]:
    """What a training of ``nn.Linear(2, 3)`` saves; ``changes`` replace its entries."""
    hub = MessageHub('of a checkpoint')
    hub.update_scalar('train/loss', 0.5)
    model = nn.Linear(2, 3)
    return {
        'meta': {'epoch': epoch, 'iter': iteration, 'cfg': 'x = 1'},
        'state_dict': model.state_dict(),
        'message_hub': hub.state_dict(),
        'optimizer': torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9).state_dict(),
        **changes,
    }
