# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Train a backbone as two CUDA graphs: two launches a step instead of thousands."""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.utils import apply_to
from torch import Tensor, nn

from ..models.dynamize import DynamicBackbone
from .graphs import GraphedForward, uncached


class TrainingGraphs(GraphedForward):
    """Takes the place of a backbone's forward in training on a GPU.

    The first batch of a shape runs as ever; the second is captured, forward and backward, by
    ``torch.cuda.make_graphed_callables``, and others of that shape are replayed. What changes what
    is executed begins anew: options in use, modes, parameters that learn and where they lie, and
    autocast. Batches of other shapes, without gradients, or in evaluation run as ever, and so does
    a second forward pass before the backward pass of the first.

    Hooks of modules inside of the backbone are not called in a replay.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.shape: tuple | None = None
        """Shape that is replayed, or was seen once."""
        self._state: tuple | None = None
        self._graph: Callable[..., Any] | None = None
        self._structure: Any = None
        """What the backbone returned, with numbers of outputs for tensors."""
        self._parameters: list[nn.Parameter] = []
        self._own: dict[int, int] = {}
        """Where gradients lie that later replays add to."""
        self._pending: Callable[[], Any] = _nothing
        """What there is while outputs wait for their gradients, which a replay would write over."""

    @property
    def is_captured(self) -> bool:
        """Whether batches are replayed."""
        return self._graph is not None

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        learns = torch.is_grad_enabled() and self.backbone.training and not x.requires_grad
        learns = learns and any(p.requires_grad for p in self.backbone.parameters())
        if not learns or not self.serves(x) or args or kwargs or self._pending() is not None:
            return self.run(x, *args, **kwargs)
        state, shape = self._state_now(), (x.shape, x.stride(), x.dtype, x.device)
        if state != self._state:
            self.release()
            self._state = state
        if self._graph is None:
            if self.shape != shape:
                self.shape = shape  # kernels are compiled, caches are filled
                return self.run(x)
            self._capture(x)
        elif self.shape != shape:
            return self.run(x)
        assert self._graph is not None
        self._keep_gradients()
        # The next replay writes over its outputs.
        outputs = [output.clone() for output in self._graph(x, *self._parameters)]

        def arrived(gradient: Tensor) -> None:
            self._pending = _nothing

        self._pending = weakref.ref(arrived)  # it lives as long as what waits for the gradient
        next(o for o in outputs if o.requires_grad).register_hook(arrived)
        return apply_to(self._structure, lambda n: isinstance(n, int), outputs.__getitem__)

    def release(self) -> None:
        """Forget what was captured."""
        if self._graph is not None:
            self._graph = None
            gc.collect()  # it is part of cycles, and holds as much memory as a step takes
        self.shape, self._pending = None, _nothing

    def _state_now(self) -> tuple:
        """What decides, beside the input, what is executed."""
        backbone = self.backbone
        modes = tuple(module.training for module in backbone.modules())
        learns = tuple((p.requires_grad, p.data_ptr()) for p in backbone.parameters())
        options: tuple = ()
        if isinstance(backbone, DynamicBackbone):
            layers = [backbone.get_submodule(name) for name in backbone.dynamic_layers]
            options = tuple((layer.in_use, _place(layer.forced)) for layer in layers)
            options += (_place(backbone.option_counts),)
        autocast = torch.is_autocast_enabled('cuda'), torch.get_autocast_dtype('cuda')
        return modes, learns, options, *autocast

    def _capture(self, x: Tensor) -> None:
        structures = []

        def run(x: Tensor) -> tuple:
            tensors: list[Tensor] = []

            def number(tensor: Tensor) -> int:
                tensors.append(tensor)
                return len(tensors) - 1

            structures.append(apply_to(self.run(x), torch.is_tensor, number))
            return tuple(tensors)

        learning = {n: p for n, p in self.backbone.named_parameters() if p.requires_grad}
        self._parameters = list(learning.values())
        # Leaves of their own: those of a graph that is alive, or DistributedDataParallel's,
        # belong to the default stream, which nothing captured may wait on.
        twins = [p.detach().requires_grad_() for p in self._parameters]

        def call(x: Tensor, *leaves: Tensor) -> tuple:
            given = dict(zip((f'of.{n}' for n in learning), leaves, strict=True))
            return torch.func.functional_call(_Callable(run, self.backbone), given, (x,))

        with self._unchanged(), uncached():
            graphed = torch.cuda.make_graphed_callables(
                call, (x.clone(), *twins), allow_unused_input=True
            )
        self._graph, self._structure, self._own = graphed, structures[-1], {}

    def _keep_gradients(self) -> None:
        """Move gradients that were accumulated so far out of the graph's memory, which the next
        backward pass writes over."""
        for n, parameter in enumerate(self._parameters):
            if (gradient := parameter.grad) is None or self._own.get(n) == gradient.data_ptr():
                continue
            parameter.grad = gradient.clone()
            self._own[n] = parameter.grad.data_ptr()

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Take back what passes that warm up leave in buffers."""
        kept = list(self.backbone.buffers())
        counts = getattr(self.backbone, 'option_counts', None)
        kept += [] if counts is None else [counts]
        values = [buffer.clone() for buffer in kept]
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in zip(kept, values, strict=True):
                    buffer.copy_(value)


def _nothing() -> None:
    """Stands for a reference to what is gone."""


def _place(tensor: Any) -> tuple | None:
    return None if tensor is None else (tensor.data_ptr(), tensor.shape)


class _Callable(nn.Module):
    """What is captured, and whose parameters it reads."""

    def __init__(self, run: Callable[..., tuple], backbone: nn.Module) -> None:
        super().__init__()
        self.run, self.of = run, backbone

    def forward(self, x: Tensor) -> tuple:
        return self.run(x)
