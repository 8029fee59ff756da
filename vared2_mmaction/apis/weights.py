# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Load a checkpoint and refuse that of another network."""

import os

from mmengine.runner import load_checkpoint
from torch import nn

from ..models.dynamize import is_own_parameter


def load_weights(model: nn.Module, checkpoint: str) -> str:
    """Load a checkpoint; gates that it lacks stay as initialised.

    Returns:
        Where the weights are from, in words.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it cannot be loaded, or is that of another network.
    """
    check_checkpoint(checkpoint)
    try:
        loaded = load_checkpoint(model, checkpoint, map_location='cpu', logger='silent')
    except Exception as error:  # unpickling some other file may raise anything
        what = f'{type(error).__name__}: {error}'
        raise ValueError(f'CHECKPOINT={checkpoint!r} cannot be loaded: {what}') from error
    given = {k.removeprefix('module.'): v for k, v in loaded.get('state_dict', loaded).items()}
    note = ''
    for key, parameter in model.named_parameters():  # MMEngine would only log what differs
        found = getattr(given.get(key), 'shape', None)
        if found is None and is_own_parameter(key):
            note = ', which lacks gates: they are as initialised'
        elif found != parameter.shape:
            raise ValueError(
                f'CHECKPOINT={checkpoint!r} is of another network: expected {key} of shape '
                f'{tuple(parameter.shape)}, found {found and tuple(found)}'
            )
    return f'checkpoint {checkpoint}{note}'


def check_checkpoint(checkpoint: str) -> None:
    """Look whether there is a file; a URL is believed.

    Raises:
        FileNotFoundError: If there is none.
    """
    if '://' not in checkpoint and not os.path.isfile(checkpoint):
        raise FileNotFoundError(f'CHECKPOINT={checkpoint!r}: no such file')
