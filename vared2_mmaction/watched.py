# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Whether calling a module does what its class is known to do, and nothing else.

Modules are converted (``SyncBatchNorm``), parametrised (weight norm), derived from and hooked. What
takes the place of a call has to ask first.
"""

from collections.abc import Callable

from torch import nn
from torch.nn.utils import parametrize

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm)
"""BatchNorm of any rank, synchronised, or reverted from that by MMEngine."""


def is_watched(*modules: nn.Module, but: Callable | None = None) -> bool:
    """Whether any of some modules has hooks ``but`` for one, or a forward not its class's."""
    for module in modules:
        if module._forward_pre_hooks or module._backward_pre_hooks or module._backward_hooks:
            return True
        hooks = module._forward_hooks
        if hooks and any(hook is not but for hook in hooks.values()):
            return True
        if 'forward' in module.__dict__:
            return True
    return False


def runs(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module is of a class, converted or derived perhaps, and has the class's forward."""
    return any(
        isinstance(module, kind)
        and all(
            getattr(type(module), method, None) is getattr(kind, method, None)
            for method in ('forward', '_conv_forward')
        )
        for kind in kinds
    )


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module computes what one of these classes does from its own tensors, unwatched."""
    return (
        runs(module, *kinds) and not is_watched(module) and not parametrize.is_parametrized(module)
    )
