# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Replay an optimised backbone as a CUDA graph: one launch instead of hundreds."""

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from mmengine.utils import apply_to
from torch import Tensor, nn
from typing_extensions import Self

from ..executors import ExecutedConv
from ..models.policy import dynamic_layers
from ..models.wrapped import backbone_of

MAX_GRAPHS = 8
"""Shapes of inputs that a network keeps a graph of; those that come later run as ever."""
_WARMUP = 3


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    x: Tensor
    """What the graph reads."""
    forced: tuple[Tensor | None, ...]
    """What it reads of the options that are forced on each layer."""
    output: Any
    """What it writes."""


class GraphedForward:
    """What takes the place of a backbone's forward; copies of the backbone capture their own
    graphs.

    Args:
        backbone: The backbone.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward whose place this takes."""
        return type(self.backbone).forward(self.backbone, *args, **kwargs)

    def serves(self, x: Tensor) -> bool:
        """Whether an input lies where there are graphs."""
        return x.is_cuda

    def __deepcopy__(self, memo: Any) -> Self:
        return type(self)(copy.deepcopy(self.backbone, memo))

    def __reduce__(self) -> tuple:
        return type(self), (self.backbone,)


class Graphs(GraphedForward):
    """Replays what a forward did with the first input of a shape, for inference."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.by_key: dict[tuple, _Graph] = {}
        self._layers: list[Any] | None = None
        self._executed: list[Any] = []

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.serves(x) or torch.is_grad_enabled() or args or kwargs:
            return self.run(x, *args, **kwargs)
        forced = tuple(layer.forced for layer in self.layers())
        autocast = torch.is_autocast_enabled('cuda'), torch.get_autocast_dtype('cuda')
        shapes = tuple(None if options is None else options.shape for options in forced)
        # A network that was moved or converted has made its executors anew.
        executors = tuple(layer.executor for layer in self._executed)
        key = (x.shape, x.stride(), x.dtype, x.device, *autocast, shapes, executors)
        found = self.by_key.get(key)
        if found is None:
            if len(self.by_key) >= MAX_GRAPHS or any(map(_asks_the_host, self.layers())):
                return self.run(x)
            # What is made here is kept, for calls outside of inference mode too.
            with torch.cuda.device_of(x), torch.inference_mode(False), torch.no_grad(), uncached():
                found = self.by_key[key] = self._capture(x, forced)
        with torch.cuda.device_of(x):
            found.x.copy_(x)
            for kept, options in zip(found.forced, forced, strict=True):
                if kept is not None:
                    kept.copy_(options)
            found.graph.replay()
        # The next replay writes over what is returned.
        return apply_to(found.output, torch.is_tensor, torch.clone)

    def layers(self) -> list[Any]:
        """The backbone's dynamic layers; looking for them takes as long as a small graph."""
        if self._layers is None:
            self._layers = list(dynamic_layers(self.backbone).values())
            self._executed = [m for m in self.backbone.modules() if isinstance(m, ExecutedConv)]
        return self._layers

    def _capture(self, x: Tensor, forced: tuple[Tensor | None, ...]) -> _Graph:
        kept = torch.empty_like(x).copy_(x)
        read = tuple(None if options is None else options.clone() for options in forced)
        measures = torch.backends.cudnn.benchmark
        # What cuDNN picks is replayed from now on, so that it may as well measure.
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.deterministic
        self._force(read)
        try:
            side = torch.cuda.Stream(x.device)
            side.wait_stream(torch.cuda.current_stream(x.device))
            with torch.cuda.stream(side):  # kernels are compiled and measured, caches are filled
                for _ in range(_WARMUP):
                    self.run(kept)
            torch.cuda.current_stream(x.device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # The default stream of captures is of the first GPU that captured; loaders pin memory.
            with torch.cuda.graph(graph, stream=side, capture_error_mode='thread_local'):
                output = self.run(kept)
        finally:
            self._force(forced)
            torch.backends.cudnn.benchmark = measures
        return _Graph(graph, kept, read, output)

    def _force(self, forced: tuple[Tensor | None, ...]) -> None:
        for layer, options in zip(self.layers(), forced, strict=True):
            layer.forced = options


def capture(model: nn.Module) -> nn.Module:
    """Let an optimised model's backbone run as a CUDA graph, in place.

    On a GPU a forward pass consists of hundreds of launches, which the host needs longer for than
    the GPU for small batches. The first input of a shape is executed and captured, and others of
    that shape are one launch. Parameters must stay as they are.

    Args:
        model: A recognizer or backbone that decides on the GPU: optimised there, stock, or dynamic
            as it was trained.

    Returns:
        The same model. Inputs on a CPU, with gradients, and of more shapes than ``MAX_GRAPHS`` are
        executed as before.

    Raises:
        ValueError: If a dynamic layer asks the host what to do, which a graph cannot.
    """
    for name, layer in dynamic_layers(model).items():
        if _asks_the_host(layer):
            raise ValueError(
                f'{name}: expected a layer that decides on the GPU; its executor asks the host'
            )
    backbone = backbone_of(model)
    backbone.forward = Graphs(backbone)
    return model


def _asks_the_host(layer: Any) -> bool:
    return getattr(layer, 'executed_by', None) == 'eager'


def uncached() -> AbstractContextManager:
    """Autocast as it is, but that graphs cast parameters themselves."""
    if not torch.is_autocast_enabled('cuda'):
        return nullcontext()
    return torch.autocast('cuda', dtype=torch.get_autocast_dtype('cuda'), cache_enabled=False)
