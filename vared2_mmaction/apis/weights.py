# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Build the network of a config; load a checkpoint, and refuse that of another network."""

import os
from collections import OrderedDict

from mmaction.models.recognizers import Recognizer2D, Recognizer3D
from mmaction.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import nn

from ..checkpoints.loading import OtherNetworkError, whole_networks
from ..checkpoints.reading import CheckpointError
from ..models.static import is_detector
from .check import check_config


def load_model(cfg: Config, checkpoint: str | os.PathLike | None = None) -> tuple[nn.Module, str]:
    """Build a config's recognizer or detector, and say where its weights are from.

    Gates that the checkpoint lacks stay as initialised.

    Raises:
        ValueError: If the config is wrong, or the checkpoint is that of another network.
        FileNotFoundError: If there is no such checkpoint.
    """
    check_config(cfg)
    init_default_scope(cfg.get('default_scope') or 'mmaction')
    for key in ('max_testing_views', 'fcn_test'):  # clips come one at a time; heads keep their fc
        (cfg.model.get('test_cfg') or {}).pop(key, None)
    model = MODELS.build(cfg.model)
    if not isinstance(model, Recognizer2D | Recognizer3D) and not is_detector(model):
        expected = 'Recognizer2D, Recognizer3D or FastRCNN'
        raise ValueError(f'model.type={cfg.model.type!r}: expected {expected}')
    if checkpoint is None:
        return model, 'no checkpoint, weights as initialised'
    return model, load_weights(model, checkpoint)


def load_weights(model: nn.Module, checkpoint: str | os.PathLike) -> str:
    """Load a checkpoint; gates that it lacks stay as initialised.

    Returns where the weights are from, and how many tensors, in words.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it cannot be loaded, or is that of another network.
    """
    checkpoint = os.fspath(checkpoint)
    check_checkpoint(checkpoint)
    try:
        with whole_networks():
            content = mmengine_checkpoint._load_checkpoint(checkpoint, 'cpu', 'silent')
            state = content.get('state_dict', content)
            given = OrderedDict((key.removeprefix('module.'), v) for key, v in state.items())
            if hasattr(state, '_metadata'):  # versions of layers
                given._metadata = state._metadata  # type: ignore[attr-defined]
            report = mmengine_checkpoint.load_state_dict(model, given, logger='silent')
    except OtherNetworkError as error:
        what = str(error).removeprefix('checkpoint ')
        raise ValueError(f'CHECKPOINT={checkpoint!r} is {what}') from error
    except (CheckpointError, ImportError, OSError) as error:
        raise ValueError(f'CHECKPOINT={checkpoint!r} cannot be loaded: {error}') from error
    note = ', which lacks gates: they are as initialised' if report.gates else ''
    return f'checkpoint {checkpoint}, {report.loaded} tensors{note}'


def check_checkpoint(checkpoint: str | os.PathLike) -> None:
    """Raise a FileNotFoundError if there is no such file; a URL is believed."""
    checkpoint = os.fspath(checkpoint)
    if '://' not in checkpoint and not os.path.isfile(os.path.expanduser(checkpoint)):
        raise FileNotFoundError(f'CHECKPOINT={checkpoint!r}: no such file')
