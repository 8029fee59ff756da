# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Rows of tools/gpu_check.py: networks, how they are timed, and inference.

Networks take turns, and CUDA events time them. Every row is given away at once, so that what was
measured stays when the time is up.
"""

import copy
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmaction.registry import MODELS
from mmengine.config import Config
from torch import Tensor, nn

from vared2_mmaction.models import dynamic_layers, force_policies, to_static

ROOT = Path(__file__).resolve().parent.parent.parent
NETWORKS = {'r2plus1d': 'vared2_r2plus1d.py', 'tsn': 'vared2_tsn.py', 'i3d': 'vared2_i3d.py'}
DTYPES = {'bfloat16': torch.bfloat16, 'float32': torch.float32}
WARMUP = 3


@dataclass
class Scale:
    """What is measured: the real networks, or small ones that show that everything runs."""

    device: str = 'cuda'
    clips: int = 8
    frames: int = 8
    size: int = 224
    inference_clips: tuple[int, ...] = (1, 16, 64)
    runs: int = 10
    channels_last: bool = False
    """Whether all but the stock network as MMAction2 runs it train with channels innermost."""
    small: dict[str, Any] | None = None
    """Changes to configs of backbones."""

    @classmethod
    def tiny(cls, runs: int) -> 'Scale':
        """Runs on a CPU; its times mean nothing."""
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
        return cls(device, 2, 8, 32, (1, 2), runs, small={'base_channels': 8, 'depth': 18})


def build(name: str, scale: Scale) -> nn.Module:
    """A dynamic backbone with random weights."""
    torch.manual_seed(0)
    config = Config.fromfile(ROOT / 'configs' / NETWORKS[name]).model.backbone
    config.update(pretrained=None)
    if name == 'tsn':
        config.update(num_segments=scale.frames)
    if scale.small:
        config.update(scale.small)
        if name == 'tsn':
            del config.base_channels
        if name == 'i3d':
            config.update(depth=50)
    return MODELS.build(config).to(scale.device)


def make_input(name: str, clips: int, scale: Scale) -> Tensor:
    """Clips (N, 3, T, H, W), or frames (N T, 3, H, W) of TSN."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(clips, 3, scale.frames, scale.size, scale.size, generator=generator)
    if name == 'tsn':
        x = x.transpose(1, 2).flatten(0, 1)
    return x.to(scale.device)


def prune(net: nn.Module, channel: Sequence[int], temporal: Sequence[int]) -> nn.Module:
    """Leave some options in use, of those that each layer has."""
    for layer in dynamic_layers(net).values():
        numbers = layer.num_options
        layer.channel_options.use(min(i, numbers[0] - 1) for i in channel)
        layer.temporal_options.use(min(j, numbers[1] - 1) for j in temporal)
    return net


def measure(calls: dict[str, Callable[[], Any]], scale: Scale) -> dict[str, list[float]]:
    """Milliseconds of each call, in turn."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    on_gpu = scale.device == 'cuda'
    for run in range(-WARMUP, scale.runs):
        for name, call in calls.items():
            if on_gpu:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                torch.cuda.synchronize()
                start.record()
                call()
                end.record()
                torch.cuda.synchronize()
                ms = start.elapsed_time(end)
            else:
                begun = time.perf_counter()
                call()
                ms = 1000 * (time.perf_counter() - begun)
            if run >= 0:
                taken[name].append(ms)
    return taken


def summed_up(ms: list[float], against: dict[str, list[float]]) -> dict[str, float]:
    """Median and spread of times, and median ratios to those of others within the runs."""
    ordered = sorted(ms)
    row = {'ms': statistics.median(ms), 'ms_low': ordered[0], 'ms_high': ordered[-1]}
    for name, others in against.items():
        ratios = sorted(a / b for a, b in zip(ms, others, strict=True))
        row[f'time_{name}'] = statistics.median(ratios)
        row[f'time_{name}_low'], row[f'time_{name}_high'] = ratios[0], ratios[-1]
    return row


def fullgraph_rows(scale: Scale) -> Iterator[dict[str, Any]]:
    """Whether a backbone and its gradients are one graph, whose result is that of the operations.

    A part of a network has to do: tracing takes minutes for a whole one.
    """
    config = Config.fromfile(ROOT / 'configs' / NETWORKS['tsn']).model.backbone
    config.update(pretrained=None, depth=18, num_segments=scale.frames)
    config.update(num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
    net = MODELS.build(config).to(scale.device)
    net.train()
    x = make_input('tsn', scale.clips, scale)
    compiled: Any = torch.compile(copy.deepcopy(net), backend='aot_eager', fullgraph=True)
    results = []
    runs: list[Any] = [net, compiled]
    # Products rounded to TF32 differ by more than is to be shown.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False, deterministic=True):
        for run in runs:
            features, decisions = run(x)
            (features.square().mean() + decisions[..., 0].mean()).backward()
            results.append([features, *(p.grad for p in run.parameters() if p.grad is not None)])
    pairs = list(zip(*results, strict=True))
    worst = max((a - b).abs().max() / a.abs().max().clamp(min=1e-3) for a, b in pairs).item()
    row = {'section': 'fullgraph', 'network': 'tsn', 'what': 'open', 'difference': worst}
    yield row if worst < 1e-2 else {**row, 'error': f'compiled, it differs by {worst:.1e}'}


def inference_rows(name: str, dtype: str, scale: Scale) -> Iterator[dict[str, Any]]:
    """Rows of inference, of which those with an ``error`` were not taken."""
    from vared2_mmaction import optimize
    from vared2_mmaction.deploy.graphs import Graphs, capture

    net = build(name, scale)
    net.eval()
    pruned = prune(copy.deepcopy(net), (1,), (1,))
    raw = to_static(net)
    raw.eval()

    def helped(model: nn.Module) -> nn.Module:
        fast = optimize(model)
        if scale.device == 'cuda' and not isinstance(fast.__dict__.get('forward'), Graphs):
            capture(fast)
        return fast

    common = {'section': 'infer', 'network': name, 'dtype': dtype}
    networks: dict[str, Any] = {'stock': raw}
    for what, model in (('same', raw), ('open', net), ('pruned', pruned)):
        try:
            networks[what] = helped(model)
        except Exception as error:
            yield {**common, 'what': what, 'error': f'{type(error).__name__}: {error}'[:2000]}
    kinds = {'same': 'same', 'full': 'open', 'gates': 'open', 'mixed': 'open', 'pruned': 'pruned'}
    for clips in scale.inference_clips:
        x = make_input(name, clips, scale)
        for what, key in kinds.items():
            if key not in networks:
                continue
            label = {**common, 'clips': clips, 'what': what}
            try:
                with ExitStack() as stack:
                    stack.enter_context(torch.no_grad())
                    stack.enter_context(_autocast(scale, dtype))
                    own = networks[key]
                    stack.enter_context(_forced(own, what, clips))
                    others = ('stock',) if what == 'same' else ('stock', 'same')
                    calls = {n: _call(networks[n], x) for n in others if n in networks}
                    calls['own'] = _call(own, x)
                    difference = _difference(own, net if key == 'open' else pruned, what, x, clips)
                    taken = measure(calls, scale)
                row = summed_up(taken['own'], {n: taken[n] for n in calls if n != 'own'})
                yield {**label, **row, 'difference': difference}
            except Exception as error:
                yield {**label, 'error': f'{type(error).__name__}: {error}'[:2000]}
        for fast in networks.values():
            if isinstance(graphs := fast.__dict__.get('forward'), Graphs):
                graphs.by_key.clear()
        free()


def _call(net: nn.Module, x: Tensor) -> Callable[[], Any]:
    return lambda: net(x)


def _autocast(scale: Scale, dtype: str) -> AbstractContextManager:
    return torch.autocast(scale.device, DTYPES[dtype], enabled=dtype != 'float32')


@contextmanager
def _forced(net: nn.Module, what: str, clips: int) -> Iterator[None]:
    """Force the policies of a row."""
    layers = len(dynamic_layers(net))
    policy = torch.zeros(1, layers, 2, dtype=torch.long)
    if what == 'mixed':
        generator = torch.Generator().manual_seed(2)
        policy = torch.randint(0, 3, (clips, layers, 2), generator=generator)
    if what not in ('full', 'mixed'):
        yield
        return
    with force_policies(net, policy):
        yield


def _difference(fast: nn.Module, net: nn.Module, what: str, x: Tensor, clips: int) -> float | None:
    """Largest difference of features from those of the definition, of the first clips."""
    if what == 'same' or clips > 16:
        return None
    with _forced(net, what, clips):
        expected = net(x)[0].float()
    return ((fast(x)[0].float() - expected).abs().max() / expected.abs().max()).item()


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
