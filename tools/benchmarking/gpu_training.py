# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Rows of tools/gpu_check.py: training steps next to the stock network."""

import copy
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vared2_mmaction.deploy.training_graphs import TrainingGraphs
from vared2_mmaction.layout import innermost
from vared2_mmaction.models import dynamic_layers, to_static
from vared2_mmaction.ops import ChannelOptions, Options, TemporalOptions, kept

from .gpu import DTYPES, Scale, build, free, make_input, measure, prune, summed_up

MODES = ('eager', 'graph', 'compile', 'reduce-overhead')
"""How a training step is executed: as MMAction2 does it; its backbone as CUDA graphs, as
CUDAGraphHook does it; by ``torch.compile``; compiled with that mode, which uses CUDA graphs."""
CLASSES, BUDGET = 400, 0.6


class Step:
    """A training step of a backbone and a linear head: forward, loss, backward, optimizer."""

    def __init__(
        self, net: nn.Module, x: Tensor, dtype: torch.dtype, mode: str, scale: Scale
    ) -> None:
        self.scale, self.dtype = scale, dtype
        self.base = self._allocated()
        self.net = net
        net.train()
        self.x, self.clips = x, len(x) if x.dim() == 5 else len(x) // scale.frames
        self.labels = torch.arange(self.clips, device=x.device) % CLASSES
        with torch.no_grad():
            channels = self._features(net(x))[0].shape[1]
        self.head = nn.Linear(channels, CLASSES, device=x.device)
        parameters = [p for p in (*net.parameters(), *self.head.parameters()) if p.requires_grad]
        self.optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)
        self.run: Callable[..., Any] = net
        begun = time.perf_counter()
        if mode in ('compile', 'reduce-overhead'):
            self.compile(mode)
        elif mode == 'graph':
            self.run = TrainingGraphs(net)
        self()
        self._wait()
        if mode != 'graph':
            self.first_step_s = time.perf_counter() - begun
        self.peak_mb = self._peak(self)  # of the graph, which the second step captures
        if mode == 'graph':
            self.first_step_s = time.perf_counter() - begun

    def compile(self, mode: str) -> None:
        """Compile the backbone; a dynamic one has to be one graph."""
        fullgraph = bool(dynamic_layers(self.net))
        if self.scale.device == 'cpu':
            self.run = torch.compile(self.net, backend='aot_eager', fullgraph=fullgraph)
        else:
            how = 'reduce-overhead' if mode == 'reduce-overhead' else 'default'
            self.run = torch.compile(self.net, mode=how, fullgraph=fullgraph)

    def __call__(self) -> None:
        if self.run is not self.net:
            torch.compiler.cudagraph_mark_step_begin()
        self.forward_and_backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def forward_and_backward(self) -> Tensor:
        """The loss, whose gradients are there."""
        with torch.autocast(self.scale.device, self.dtype, enabled=self.dtype != torch.float32):
            found = self.run(self.x)
            features, decisions = self._features(found)
            axes = tuple(range(2, features.dim()))
            scores = self.head(features.mean(axes).view(self.clips, -1, features.shape[1]).mean(1))
            loss = F.cross_entropy(scores.float(), self.labels)
        if decisions is not None:
            share = decisions[..., 0].sum(1) / decisions[..., 1].sum(1)
            loss = loss + (share - BUDGET).clamp(min=0).square().mean().float()
        loss.backward()
        return loss

    def waits_for_the_host(self) -> str:
        """What a step waits for, or nothing; an optimizer is not looked at."""
        if self.scale.device != 'cuda':
            return ''
        torch.cuda.set_sync_debug_mode('error')
        try:
            self.forward_and_backward()
        except RuntimeError as error:
            return str(error)
        finally:
            torch.cuda.set_sync_debug_mode('default')
            self.optimizer.zero_grad(set_to_none=True)
        return ''

    def _features(self, found: Any) -> tuple[Tensor, Tensor | None]:
        return (found[0], found[1]) if hasattr(found, 'decisions') else (found, None)

    def _peak(self, call: Callable[[], Any]) -> float:
        """Memory of the network, its gradients, optimizer and a step at most, in 10^6 bytes."""
        if self.scale.device != 'cuda':
            call()
            return 1.0
        self._wait()
        torch.cuda.reset_peak_memory_stats()
        call()
        self._wait()
        weights = sum(p.numel() * p.element_size() for p in self.net.parameters())
        return (torch.cuda.max_memory_allocated() - self.base + weights) / 1e6

    def _allocated(self) -> int:
        if self.scale.device != 'cuda':
            return 0
        free()
        return torch.cuda.memory_allocated()

    def _wait(self) -> None:
        if self.scale.device == 'cuda':
            torch.cuda.synchronize()


def training_rows(
    name: str, dtype: str, modes: tuple[str, ...], scale: Scale
) -> Iterator[dict[str, Any]]:
    """Rows of training steps, of which those with an ``error`` were not taken."""
    net = build(name, scale)
    x = make_input(name, scale.clips, scale)
    stock = Step(to_static(net), x, DTYPES[dtype], 'eager', scale)
    common = {'section': 'train', 'network': name, 'dtype': dtype, 'clips': scale.clips}
    row = summed_up(measure({'stock': stock}, scale)['stock'], {})
    yield {**common, 'mode': 'eager', 'what': 'stock', **row, 'peak_mb': stock.peak_mb}
    kinds = {'open': ((0, 1, 2), (0, 1, 2)), 'pruned': ((1, 2), (0, 1, 2))}
    for mode in modes:
        if scale.device != 'cuda' and mode == 'reduce-overhead':
            continue
        same: Step | None = stock if mode == 'eager' else None
        for what in ('stock', *kinds):
            if mode == 'eager' and what == 'stock':
                continue
            label = {**common, 'mode': mode, 'what': what}
            try:
                made = to_static(net) if what == 'stock' else copy.deepcopy(net)
                if what != 'stock':
                    prune(made, *kinds[what])
                step = Step(_laid_out(made, scale), _laid_out(x, scale), DTYPES[dtype], mode, scale)
                if what == 'stock':
                    same = step
                yield {**label, **_training_row(step, stock, same, scale)}
            except Exception as error:  # the next may be measured
                yield {**label, 'error': f'{type(error).__name__}: {error}'[:2000]}
        free()


MIXED = ((64, 8, 56), (144, 8, 56), (256, 4, 14), (512, 2, 7))
"""Channels, frames and positions along a line of maps that are mixed."""


def mixing_rows(dtype: str, scale: Scale) -> Iterator[dict[str, Any]]:
    """Rows of mixing forward and backward: by kernels, by the definition as it is, and compiled.

    The times are over those of the compiled definition.
    """
    from vared2_mmaction.executors.mixing import mix_on_gpu
    from vared2_mmaction.ops.mixing import Shares, mix

    ways: dict[str, Callable[..., Tensor]] = {
        'definition': mix,
        'kernels': mix_on_gpu,
        'compiled definition': torch.compile(mix, dynamic=False),
    }
    for channels, frames, size in MIXED:
        own, over = (kind(channels, 3) for kind in (ChannelOptions, TemporalOptions))
        number = len(kept(frames, 3))
        options = Options((0, 1, 2), tuple(range(number)))
        shape = scale.clips, channels, frames, size, size
        z = torch.randn(shape, dtype=DTYPES[dtype]).to(scale.device).requires_grad_()
        share = Shares(
            *(torch.rand(scale.clips, n).to(scale.device).requires_grad_() for n in (3, number))
        )
        gradient = torch.randn(shape, dtype=DTYPES[dtype]).to(scale.device)
        parts = own.to(scale.device), over.to(scale.device)
        leaves: Any = [z, *share, *own.parameters(), *over.parameters()]

        def run(mixes: Callable[..., Tensor]) -> list[Tensor]:
            y = mixes(z, share, options, *parts, frames)  # noqa: B023  (called at once)
            found = torch.autograd.grad(y, leaves, gradient, allow_unused=True)  # noqa: B023
            return [y, *(torch.zeros(()) if g is None else g for g in found)]

        results = {name: run(mixes) for name, mixes in ways.items()}
        taken = measure({name: partial(run, mixes) for name, mixes in ways.items()}, scale)
        for name, ms in taken.items():
            pairs = zip(results[name], results['definition'], strict=True)
            difference = max(
                ((a - b).abs().max() / b.abs().max().clamp(min=1e-6)).item() for a, b in pairs
            )
            row = summed_up(ms, {'same': taken['compiled definition']})
            what = f'{channels}x{frames}x{size}x{size}'
            label = {'section': 'mixing', 'dtype': dtype, 'mode': name, 'what': what}
            yield {**label, **row, 'difference': difference}


def _training_row(step: Step, stock: Step, same: Step | None, scale: Scale) -> dict[str, Any]:
    """Time and memory next to the stock network as MMAction2 runs it, and with the same help."""
    rivals = {'stock': stock}
    if same is not None and same not in (stock, step):
        rivals['same'] = same
    taken = measure({**rivals, 'own': step}, scale)
    row: dict[str, Any] = summed_up(taken['own'], {name: taken[name] for name in rivals})
    row['peak_mb'], row['first_step_s'] = step.peak_mb, step.first_step_s
    row.update({f'memory_{name}': step.peak_mb / rival.peak_mb for name, rival in rivals.items()})
    if dynamic_layers(step.net) and (waits := step.waits_for_the_host()):
        row['error'] = f'waits for the host: {waits}'
    return row


def _laid_out(given: Any, scale: Scale) -> Any:
    """A network or input with channels innermost, if that is asked for."""
    if not scale.channels_last:
        return given
    if isinstance(given, Tensor):
        return innermost(given)
    for parameter in given.parameters():
        parameter.data = _laid_out(parameter.data, scale) if parameter.dim() > 3 else parameter.data
    return given
