# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Stock blocks that decide for their layers together, or are run again in the backward pass."""

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..ops import SoftModulationGate
from ..ops.joint import Joint, deciding
from ..ops.stack import GateStack
from ..ops.watched import is_watched

_RESIDUAL_BLOCK = re.compile(r'(.*\.)?layer\d+\.\d+(?=\.)')


def block_of(layer: str) -> str | None:
    """Name of the residual block that a layer is in, by its own name."""
    match = _RESIDUAL_BLOCK.match(layer)
    return match and match[0]


class Deciding(nn.Module):
    """Mixin: a block whose layers' gates see the input of the block and decide together."""

    block_name: str
    decides_for: tuple[Any, ...]
    """The dynamic layers."""
    gate_stack: GateStack | None
    """The gates as one module, in a fused network."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        clips = self.decides_for[0]._to_clips(x)
        expected = self.decides_for[0].gate.in_channels
        if clips.shape[1] != expected:
            raise ValueError(
                f'{self.block_name}: expected {expected} channels, those of its first convolution, '
                f'at the input of the block, got shape {tuple(x.shape)}; with '
                "dynamic.gate_input='layer' every gate sees the input of its own layer"
            )
        stacked = self.gate_stack is not None and self.gate_stack.is_watched()
        for layer in self.decides_for:
            if is_watched(layer.gate) or stacked:
                raise RuntimeError(
                    f'{layer.layer_name}.gate: hooks of gates that decide together would not be '
                    "called: expected dynamic.gate_input='layer'"
                )
        with deciding(Joint(self.decides_for, clips, self.gate_stack)):
            return super().forward(x, *args, **kwargs)


def decide_together(backbone: nn.Module, layers: Iterable[str]) -> None:
    """Let the gates of each residual block decide together, in place.

    Gates of other kinds than :class:`SoftModulationGate`, and those of layers outside residual
    blocks, go on deciding for themselves.

    Args:
        backbone: A backbone with dynamic layers.
        layers: Their names.
    """
    blocks: dict[str, list[nn.Module]] = {}
    for name in layers:
        layer, of = backbone.get_submodule(name), block_of(name)
        if of is not None and type(layer.gate) is SoftModulationGate:
            blocks.setdefault(of, []).append(layer)
    for name, together in blocks.items():
        block: Any = backbone.get_submodule(name)
        block.__class__ = derive(Deciding, type(block))
        block.block_name, block.decides_for, block.gate_stack = name, tuple(together), None


def stop_deciding(block: Any) -> None:
    """The inverse of :func:`decide_together` for one block."""
    for attribute in ('block_name', 'decides_for', 'gate_stack'):
        delattr(block, attribute)
    stock = next(c for c in type(block).__mro__ if not issubclass(c, Deciding | Checkpointed))
    checkpointed = isinstance(block, Checkpointed)
    block.__class__ = derive(Checkpointed, stock) if checkpointed else stock


class Checkpointed(nn.Module):
    """Mixin: a block that keeps its input only and is run again in the backward pass.

    Stock blocks ask for the re-entrant variant, which runs them without gradient first: their
    decisions would have none.
    """

    def forward(self, *args: Any) -> Any:
        if torch.is_grad_enabled():
            return checkpoint(super().forward, *args, use_reentrant=False)
        return super().forward(*args)


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


def insert_mixin(module: nn.Module, mixin: type) -> None:
    """Put a mixin between a module's class and the mixins that it has, in place."""
    *outer, stock = parts_of(type(module))
    module.__class__ = _derive_all(*outer, mixin, stock)


def _derive_all(*parts: type) -> type:
    *mixins, kind = parts
    for mixin in reversed(mixins):
        kind = derive(mixin, kind)
    return kind


def _rebuild(*parts: type) -> nn.Module:
    derived: Any = _derive_all(*parts)
    return derived.__new__(derived)
