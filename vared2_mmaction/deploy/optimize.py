# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Make a network fast for inference: the one call."""

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from ..executors import BACKENDS, ExecutedConv
from ..layout import innermost
from ..models.dynamize import DynamicBackbone, is_watched_by_others
from ..models.forms import FormedConv2d, FormedConv3d, accelerate, keep_channels_last
from ..models.policy import dynamic_layers
from ..models.wrapped import backbone_of, unwrapped, without_parametrizations
from ..ops import DynamicConv2d, DynamicConv3d
from ..watched import runs
from .blocks import ExecutedBlock
from .epilogues import execute_blocks, take_relus
from .fold import fold_norms
from .graphs import capture
from .memory import keep_freed_memory

_EXECUTED = (DynamicConv2d, DynamicConv3d, FormedConv2d, FormedConv3d)


def optimize(
    model: nn.Module, example: Tensor | None = None, *, executor: str | None = None
) -> nn.Module:
    """A copy of a model for inference, on the device where the model is.

    BatchNorm is folded into convolutions, cheap operations and gates; ReLU and residual addition
    are done by the convolutions before them; and convolutions are executed by what is fastest on
    the device. :func:`executed` says in one line what that is. On a CPU this process also keeps the
    memory of freed tensors, from now on.

    A BatchNorm stays behind dynamic layers whose maps rebuild others and are scaled to next to
    nothing. What has hooks is called as ever, and so are convolutions and norms with a forward of
    their own. Parametrisations (weight norm) become plain weights. A wrapper
    (``DistributedDataParallel``, an average of weights) is taken for what it wraps.

    Parameters of the copy differ from those of a checkpoint, and must stay as they are: load first,
    then optimise. The copy may be moved and converted to other types.

    Args:
        model: A stock or dynamic recognizer, detector or backbone.
        example: Input of the backbone, (N, C, T, H, W) or (N T, C, H, W), to warm up with.
        executor: ``cpu``, ``cuda`` or another one that is registered in
            :mod:`vared2_mmaction.executors`, or ``eager`` for PyTorch's operations. By default the
            one for the device where it is available, else ``eager``.

    Returns:
        A copy in evaluation mode, whose outputs and policies are those of the model in evaluation
        mode, up to rounding.

    Raises:
        ValueError: If there is no executor of this name.
        RuntimeError: If an executor is asked for that is not available.

    Examples:
        >>> fast = optimize(model)
        >>> print(executed(fast))
        executed: 53 convolutions by cpu (C++)
    """
    network = without_parametrizations(copy.deepcopy(unwrapped(model)))
    network.eval()  # does not return the module in stock backbones
    for layer in dynamic_layers(network).values():
        layer.forced = None  # force_policy is of the model
    device = next((p.device for p in network.parameters()), torch.device('cpu'))
    name = _choose(executor, device)
    backbone = backbone_of(network)
    of_joints = hasattr(backbone, 'graph')  # and takes views of maps as they are laid out
    if not (of_joints or isinstance(backbone, DynamicBackbone)):
        accelerate(network)
    fold_norms(network)
    network, convolutions = _swap(network)
    if isinstance(backbone, DynamicBackbone):
        backbone.find_layers()
    take_relus(network)
    execute_blocks(network)
    if not of_joints:
        keep_channels_last(network)
    for conv in convolutions:
        conv.execute_by(name)
    if device.type == 'cpu':
        keep_freed_memory()
    elif device.type == 'cuda' and name != 'eager':
        backbone = backbone_of(network)
        backbone.register_forward_pre_hook(_lay_channels_innermost)
        if _stays_on_device(backbone):
            capture(network)
    if example is not None:
        with torch.no_grad():
            backbone_of(network)(example.to(device))
    return network


def executed(model: nn.Module) -> str:
    """What executes the convolutions of an optimised model, in one line."""
    convolutions = [m for m in model.modules() if isinstance(m, ExecutedConv)]
    by = Counter(conv.executed_by for conv in convolutions)
    labels = {name: backend.label for name, backend in BACKENDS.items()}
    counts = ', '.join(
        f'{number} convolution{"s" * (number > 1)} by {labels.get(name, name)}'
        for name, number in by.most_common()
    )
    blocks = sum(isinstance(m, ExecutedBlock) for m in model.modules())
    within = f', in {blocks} residual blocks' if blocks else ''
    return f'executed: {counts or "nothing"}{within}'


def _choose(executor: str | None, device: torch.device) -> str:
    """The executor that is asked for, ready to execute; if none is, that for the device."""
    if executor is None:
        backend = BACKENDS.get(device.type)
        return backend.name if backend is not None and backend.is_available() else 'eager'
    if executor != 'eager':
        if executor not in BACKENDS:
            known = ', '.join(['eager', *BACKENDS])
            raise ValueError(f'executor={executor!r}: expected one of {known}')
        BACKENDS[executor].prepare()
    return executor


def _swap(network: Any) -> tuple[Any, list[ExecutedConv]]:
    """Swap convolutions that are what they seem, and that nobody watches, in place.

    Returns the network, another one if it is a convolution itself, and the convolutions.
    """
    swapped: dict[nn.Module, ExecutedConv] = {
        module: ExecutedConv(module, name)
        for name, module in network.named_modules()
        if runs(module, *_EXECUTED) and not is_watched_by_others(module)
    }
    for owner in list(network.modules()):
        if owner in swapped:
            continue
        for name, child in owner._modules.items():
            if child in swapped:
                setattr(owner, name, swapped[child])
    return swapped.get(network, network), list(swapped.values())


def _stays_on_device(backbone: nn.Module) -> bool:
    """Whether a backbone asks the host for nothing, and no module of it has to be called."""
    modules = list(backbone.modules())[1:]
    executed = (m for m in modules if isinstance(m, ExecutedConv))
    asks = any(conv.is_dynamic and conv.executed_by == 'eager' for conv in executed)
    return not asks and not any(map(is_watched_by_others, modules))


def _lay_channels_innermost(module: nn.Module, args: tuple) -> tuple:
    return (innermost(args[0]), *args[1:])
