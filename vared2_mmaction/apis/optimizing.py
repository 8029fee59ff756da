# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Optimise a network and say so; what cannot be optimised runs as it is."""

from mmengine.logging import print_log
from torch import nn

from ..deploy import executed, optimize
from .config_file import first_line


def optimize_and_log(model: nn.Module) -> nn.Module:
    """What :func:`try_to_optimize` gives; its line is logged."""
    network, said = try_to_optimize(model)
    print_log(said, 'current')
    return network


def try_to_optimize(model: nn.Module) -> tuple[nn.Module, str]:
    """An optimised copy of a network, see ``vared2_mmaction.optimize``, or the network where
    that fails, and a line that says which."""
    try:
        network = optimize(model)
    except Exception as error:  # what copying and swapping modules of others raises
        return model, f'not optimised: {first_line(error)}'
    return network, executed(network)
