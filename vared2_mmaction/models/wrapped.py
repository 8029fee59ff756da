# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Networks inside of wrappers and behind parametrisations."""

from typing import Any

from mmengine.model import BaseAveragedModel, is_model_wrapper
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel


def is_wrapper(model: nn.Module) -> bool:
    """Whether a module does nothing but to run another one: distributed, or an average of it."""
    return is_model_wrapper(model) or isinstance(model, BaseAveragedModel | AveragedModel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network that wrappers such as ``DistributedDataParallel`` run."""
    network: Any = model
    while is_wrapper(network):
        network = network.module
    return network


def backbone_of(model: nn.Module) -> Any:
    """The backbone of a recognizer or detector, whatever that is wrapped in; else the network."""
    network = unwrapped(model)
    return getattr(network, 'backbone', network)


def without_parametrizations(model: nn.Module) -> nn.Module:
    """The same model, in place, with the tensors that parametrisations (weight norm) make for its
    parameters; of a copy, whose original keeps them."""
    for module in list(model.modules()):
        if not parametrize.is_parametrized(module):
            continue
        made: Any = module.parametrizations
        tensors = {name: getattr(module, name).detach().clone() for name in made}
        # PyTorch's own removal takes the tensors' properties from the class, which copies share.
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
        for name, tensor in tensors.items():
            module.register_parameter(name, nn.Parameter(tensor))
    return model
