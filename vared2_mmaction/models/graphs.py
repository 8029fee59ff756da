# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Replay a fused backbone as a CUDA graph: one launch instead of hundreds."""

from typing import Any, NamedTuple

import torch
from mmengine.utils import apply_to
from torch import Tensor, nn

from .blocks import derive
from .policy import dynamic_layers
from .wrapped import backbone_of

MAX_GRAPHS = 8
"""Shapes of inputs that a network keeps a graph of; those that come later run as ever."""
_WARMUP = 3


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    x: Tensor
    """What the graph reads."""
    output: Any
    """What it writes."""
    held: list[Any]
    """What it reads besides, and what its key is made of."""


class Graphs:
    """Graphs of one module; copies of the module capture their own."""

    def __init__(self) -> None:
        self.by_key: dict[tuple, _Graph] = {}
        self._layers: list[Any] | None = None

    def layers_of(self, backbone: nn.Module) -> list[Any]:
        """The module's dynamic layers; looking for them takes as long as a small graph."""
        if self._layers is None:
            self._layers = list(dynamic_layers(backbone).values())
        return self._layers

    def __deepcopy__(self, memo: Any) -> 'Graphs':
        return Graphs()

    def __reduce__(self) -> tuple:
        return Graphs, ()


class Captured(nn.Module):
    """Mixin: a backbone that replays what it did with the first input of a shape."""

    graphs: Graphs

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not x.is_cuda or torch.is_grad_enabled() or args or kwargs:
            return super().forward(x, *args, **kwargs)
        layers = self.graphs.layers_of(self)
        held = [layer.forced for layer in layers]
        skipped = [layer.skip for layer in layers]
        autocast = torch.is_autocast_enabled('cuda'), torch.get_autocast_dtype('cuda')
        key = (x.shape, x.stride(), x.dtype, x.device, *autocast, *map(id, held), *skipped)
        found = self.graphs.by_key.get(key)
        if found is None:
            if len(self.graphs.by_key) >= MAX_GRAPHS:
                return super().forward(x)
            # What is made here is kept, for calls outside of inference mode too.
            with torch.cuda.device_of(x), torch.inference_mode(False), torch.no_grad():
                found = self.graphs.by_key[key] = self._capture(x, held)
        with torch.cuda.device_of(x):
            found.x.copy_(x)
            found.graph.replay()
        # The next replay writes over what is returned.
        return apply_to(found.output, torch.is_tensor, torch.clone)

    def _capture(self, x: Tensor, held: list[Any]) -> _Graph:
        kept = torch.empty_like(x).copy_(x)
        side = torch.cuda.Stream(x.device)
        side.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(side):  # kernels are compiled and measured, caches are filled
            for _ in range(_WARMUP):
                super().forward(kept)
        torch.cuda.current_stream(x.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = super().forward(kept)
        return _Graph(graph, kept, output, held)


def capture(model: nn.Module) -> nn.Module:
    """Let a fused model's backbone run as a CUDA graph, in place.

    On a GPU a forward pass consists of hundreds of launches, which the host needs longer for than
    the GPU for small batches. The first input of a shape is executed and captured, and others of
    that shape are one launch. Parameters must stay as they are.

    Args:
        model: A recognizer or backbone, fused with ``compiled=True`` on a GPU; or a stock one.

    Returns:
        The same model. Inputs on a CPU, with gradients, and of more shapes than ``MAX_GRAPHS`` are
        executed as before.

    Raises:
        ValueError: If a dynamic layer asks the host what to do, which a graph cannot.
    """
    for name, layer in dynamic_layers(model).items():
        if layer.compiled is None or not layer.compiled.stays_on_device:
            raise ValueError(
                f'{name}: expected a layer that decides on the GPU, of fuse(model.cuda(), '
                'compiled=True) with affine cheap operations'
            )
    backbone = backbone_of(model)
    backbone.graphs = Graphs()
    backbone.__class__ = derive(Captured, type(backbone))
    return model
