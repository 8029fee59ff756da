# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Make maps again in the backward pass instead of keeping them.

A layer keeps what it computed, for the gradient of blending, and the BatchNorm behind it keeps what
was blended from that. The latter is cheap to make again. Neither knows of the other, so they meet
in a scope, the forward of one backbone, as decisions do (:mod:`vared2_mmaction.ops.decision`):
layers offer what they can make again, and what is saved while the scope is open is compared.
"""

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from mmengine.utils import apply_to
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class _Offer(NamedTuple):
    """Maps that can be made again."""

    memory: StorageWeakRef
    """What they lie in. While it is held no other memory has its address."""
    again: Callable[[], Tensor]
    maps: Callable[[], Tensor | None]
    """The maps themselves, as long as somebody holds them or a view of them."""
    version: int
    """Theirs: they must not have been changed since."""


class _Saved(NamedTuple):
    """What is kept instead of maps."""

    again: Callable[[], Tensor]
    view: tuple[Any, ...]
    """Size, stride and offset of what was to be saved."""


_offers: ContextVar[dict[int, _Offer] | None] = ContextVar('vared2_offers', default=None)


@contextmanager
def recomputing() -> Iterator[None]:
    """Let nothing keep maps that layers offer to make again while the context is open."""
    offers: dict[int, _Offer] = {}
    token = _offers.set(offers)
    try:
        with torch.autograd.graph.saved_tensors_hooks(functools.partial(_save, offers), _load):
            yield
    finally:
        _offers.reset(token)


def offer(maps: Tensor, make: Callable[..., Tensor], *args: Any) -> None:
    """Tell the open scope, if there is one, that maps can be made again.

    Args:
        maps: The maps.
        make: Made them, of memory of their own.
        args: What they were made of.
    """
    offers = _offers.get()
    if offers is not None and torch.is_grad_enabled():
        again = functools.partial(_make, make, apply_to(args, torch.is_tensor, Tensor.detach))
        memory = maps.untyped_storage()
        offers[memory._cdata] = _Offer(
            StorageWeakRef(memory), again, weakref.ref(maps), maps._version
        )


def _make(make: Callable[..., Tensor], args: Any) -> Tensor:
    with torch.enable_grad():  # without gradients it may write over what it reads
        return make(*args).detach()


def _save(offers: dict[int, _Offer], x: Tensor) -> Any:
    found = offers.get(x.untyped_storage()._cdata)
    maps = None if found is None else found.maps()
    if found is None or maps is None or maps._version != found.version:
        return x.detach()  # an operation that holds its own output would never be freed
    return _Saved(found.again, (x.size(), x.stride(), x.storage_offset()))


def _load(saved: Any) -> Tensor:
    return saved.again().as_strided(*saved.view) if isinstance(saved, _Saved) else saved
