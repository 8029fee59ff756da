# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Passes of clips through a network in evaluation mode, as they calibrate it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..models.dynamize import DynamicBackbone
from ..models.policy import dynamic_layers
from ..models.static import is_detector, refuse_optimized, run_once
from ..models.wrapped import unwrapped
from ..watched import BATCH_NORMS


def backbone_to_calibrate(model: nn.Module) -> Any:
    """The dynamic backbone of a model.

    Raises:
        ValueError: If it has none, or several, or is optimised.
    """
    refuse_optimized(model)
    found = [module for module in model.modules() if isinstance(module, DynamicBackbone)]
    if len(found) != 1:
        raise ValueError(
            f'{type(model).__name__} has {len(found)} dynamic backbones: expected one to calibrate'
        )
    return found[0]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within, a model is in evaluation mode; each module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def run_batches(model: Any, loader: Iterable[Any]) -> None:
    """Run all batches, whatever the mode of modules.

    Args:
        model: A recognizer or detector, or a dynamic backbone.
        loader: Batches as MMEngine's data loaders make them; of a backbone, its inputs.

    Raises:
        ValueError: If there is none.
    """
    model, empty = unwrapped(model), True
    for batch in loader:
        if hasattr(model, 'extract_feat'):
            run_once(model, model.data_preprocessor(batch, False)['inputs'])
        else:
            model(batch)
        empty = False
    if empty:
        raise ValueError('loader: expected batches of clips to calibrate on, got none')


def estimate_batch_norm(model: nn.Module, loader: Iterable[Any]) -> None:
    """Estimate the running statistics of BatchNorm again, under the policy that the gates decide.

    Means and variances are averaged over batches, which should therefore be alike in size, and as
    large as in training. Those of gates stay, whose decisions they are estimated for, and those of
    a detector's head.

    Args:
        model: See :func:`run_batches`.
        loader: Batches; those of earlier layers are the same whatever later layers decide.
    """
    model = unwrapped(model)
    kept: set[Any] = {m for layer in dynamic_layers(model).values() for m in layer.gate.modules()}
    if is_detector(model):  # whose boxes are not run
        kept.update(model.get_submodule('roi_head').modules())
    norms: list[Any] = [
        module
        for module in model.modules()
        if isinstance(module, BATCH_NORMS) and module.track_running_stats and module not in kept
    ]
    momenta = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.training = True
        try:
            run_batches(model, loader)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
