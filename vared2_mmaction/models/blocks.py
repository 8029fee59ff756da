# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Stock blocks that are run again in the backward pass, and classes derived from stock ones."""

import functools
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_RESIDUAL_BLOCK = re.compile(r'(.*\.)?layer\d+\.\d+(?=\.)')


def block_of(layer: str) -> str | None:
    """Name of the residual block that a layer is in, by its own name."""
    match = _RESIDUAL_BLOCK.match(layer)
    return match and match[0]


def is_capturing() -> bool:
    """Whether operations are captured as a CUDA graph."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


class Checkpointed(nn.Module):
    """Mixin: a block that keeps its input only and is run again in the backward pass.

    Stock blocks ask for the re-entrant variant, which runs them without gradient first: their
    decisions would have none.
    """

    def forward(self, *args: Any) -> Any:
        if not torch.is_grad_enabled():
            return super().forward(*args)
        # What is captured as a CUDA graph cannot ask for the state of random numbers.
        keep = torch.compiler.is_compiling() or not is_capturing()
        return checkpoint(super().forward, *args, use_reentrant=False, preserve_rng_state=keep)


def checkpoint_without_reentry(backbone: nn.Module) -> None:
    """Replace the checkpointing of a stock backbone's blocks, in place."""
    saving = [n for n, part in backbone.named_modules() if n and getattr(part, 'with_cp', False)]
    for name in saving:
        if any(inner.startswith(f'{name}.') for inner in saving):
            continue  # a pathway of the backbone
        backbone.get_submodule(name).with_cp = False  # type: ignore[assignment]
        # What a block is in may call the block's parts itself, as in TANet.
        block = backbone.get_submodule(block_of(f'{name}.') or name)
        block.__class__ = derive(Checkpointed, type(block))


def _make_derived(mixin: Any, stock: Any) -> type[nn.Module]:
    """A class of both, whose objects can be pickled and copied."""
    parts = (mixin, *parts_of(stock))

    def reduce(self: nn.Module, protocol: Any) -> Any:
        return _rebuild, parts, self.__dict__

    members = {'__reduce_ex__': reduce, '__module__': __name__, 'parts': parts}
    return type(f'{mixin.__name__}[{stock.__name__}]', (mixin, stock), members)


# One class for each pair, so that copies of an object are of its class.
derive: Callable[[Any, Any], type[nn.Module]] = functools.cache(_make_derived)


def parts_of(kind: type) -> tuple[type, ...]:
    """Mixins of a derived class, outermost first, and the class that it was derived from."""
    return getattr(kind, 'parts', (kind,))


def _rebuild(*parts: Any) -> nn.Module:
    *mixins, kind = parts
    for mixin in reversed(mixins):
        kind = derive(mixin, kind)
    return kind.__new__(kind)
