# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Train a backbone as two CUDA graphs: two launches a step instead of thousands."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from mmengine.utils import apply_to
from torch import Tensor, nn

from ..models.dynamize import DynamicBackbone
from .graphs import GraphedForward


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
        self._pending = False
        """Whether outputs wait for their gradients, which a replay would write over."""

    @property
    def is_captured(self) -> bool:
        """Whether batches are replayed."""
        return self._graph is not None

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        learns = torch.is_grad_enabled() and self.backbone.training and not x.requires_grad
        pending, self._pending = self._pending, False
        if not learns or not self.serves(x) or args or kwargs or pending:
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
        outputs = [output.clone() for output in self._graph(x)]  # the next replay writes over them
        self._pending = True
        learning = next(o for o in outputs if o.requires_grad)
        learning.register_hook(self._arrived)
        return apply_to(self._structure, lambda n: isinstance(n, int), outputs.__getitem__)

    def serves(self, x: Tensor) -> bool:
        """Whether an input lies where there are graphs."""
        return x.is_cuda

    def release(self) -> None:
        """Forget what was captured."""
        self._graph, self.shape, self._pending = None, None, False

    def _arrived(self, gradient: Tensor) -> None:
        self._pending = False

    def _state_now(self) -> tuple:
        """What decides, beside the input, what is executed."""
        backbone = self.backbone
        modes = tuple(module.training for module in backbone.modules())
        learns = tuple((p.requires_grad, p.data_ptr()) for p in backbone.parameters())
        options: tuple = ()
        if isinstance(backbone, DynamicBackbone):
            layers = [backbone.get_submodule(name) for name in backbone.dynamic_layers]
            options = tuple((layer.in_use, id(layer.forced)) for layer in layers)
            options += (id(backbone.option_counts),)
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

        self._parameters = [p for p in self.backbone.parameters() if p.requires_grad]
        with self._unchanged(), _uncached_autocast():
            # A stranger to the backbone, whose forward is this object.
            graphed = torch.cuda.make_graphed_callables(
                _Callable(run, self._parameters), (x.clone(),), allow_unused_input=True
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


class _Callable(nn.Module):
    """What is captured, and the parameters that it reads."""

    def __init__(self, run: Callable[..., tuple], parameters: list[nn.Parameter]) -> None:
        super().__init__()
        self.run = run
        self.of_backbone = nn.ParameterList(parameters)

    def forward(self, x: Tensor) -> tuple:
        return self.run(x)


def _uncached_autocast() -> AbstractContextManager:
    """Autocast as it is, but that graphs cast parameters themselves."""
    if not torch.is_autocast_enabled('cuda'):
        return nullcontext()
    return torch.autocast('cuda', dtype=torch.get_autocast_dtype('cuda'), cache_enabled=False)
