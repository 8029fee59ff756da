# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Time a dynamic network against the stock one, side by side and with the same help.

Three networks with the same weights take turns in one process, so that whatever slows the machine
down slows all of them:

- ``stock``: MMAction2's network with all the help that ours gets: optimised for inference, and for
  training in the fastest equal form and compiled if ours is,
- ``ours``: the dynamic network, under a policy or with its own gates,
- ``unhelped``: MMAction2's network as it is.
"""

import copy
import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from mmaction.models.recognizers import Recognizer2D
from torch import Tensor, nn

from counting.clips import Views, clip_frames, random_clip
from vared2_mmaction import optimize
from vared2_mmaction.deploy import executed
from vared2_mmaction.executors.mixing import mix_anywhere, mix_on_gpu
from vared2_mmaction.models import (
    accelerate,
    dynamic_layers,
    force_policies,
    static_cost,
    to_static,
)
from vared2_mmaction.models.dynamize import DynamicFeatures
from vared2_mmaction.ops.options import MAX_OPTIONS

from .batches import Batch, classifier, make_batch
from .gpu import prune
from .memory import peak_bytes, state_tensors
from .operations import convolution_time, operation_times
from .timing import RIVALS, WARMUP, Network, realised, summarise, time_in_turn

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
SKIPPING = ('cpu', 'eager')
"""Executors that compute for each clip what it decided, and no more."""
_DIMENSIONS = ('channel', 'temporal')


@dataclass(frozen=True)
class Policy:
    """What the layers are to compute; see :func:`parse_policy`."""

    name: str
    options: tuple[int, int] | None = None
    """(p_c, p_t) of every layer and clip; None where they are drawn or the gates decide."""
    in_use: tuple[range, range] | None = None
    """Options of each dimension that are left in use; None leaves the network as it is."""

    def draw(self, clips: int, layers: int, seed: int) -> Tensor | None:
        """Options (clips, layers, 2) of every clip and layer; None where the gates decide."""
        if self.options is not None:
            return torch.tensor(self.options).expand(clips, layers, 2)
        if self.name != 'mixed':
            return None
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, 3, (clips, layers, 2), generator=generator)

    def prune(self, model: nn.Module) -> None:
        """Leave a model's layers what is to be in use, in place; the cheapest option if they have
        none of that."""
        if self.in_use is not None:
            prune(model, *self.in_use)


def parse_policy(text: str) -> Policy:
    """Read a policy.

    ``full``, ``mixed`` and ``learned``; ``channel=I,temporal=J``, of which one may be left out,
    for these options with weight one; ``pruned:channel=I,temporal=J`` for a network that has no
    other options left, or with a plus behind I or J none but these and the cheaper ones, and whose
    gates decide. A dimension that is left out keeps all of its options.

    Raises:
        ValueError: If it is none of them.
    """
    if text in ('mixed', 'learned'):
        return Policy(text)
    if text == 'full':
        return Policy(text, (0, 0))
    pruned = text.startswith('pruned:')
    parts = [part.partition('=') for part in text.removeprefix('pruned:').split(',')]
    given = {name: option for name, _, option in parts}
    known = len(given) == len(parts) and set(given) <= set(_DIMENSIONS)
    numbers = [option.removesuffix('+') if pruned else option for option in given.values()]
    if not known or not all(o.isascii() and o.isdigit() and int(o) < MAX_OPTIONS for o in numbers):
        raise ValueError(
            f'--policy {text}: expected full, mixed, learned, channel=I,temporal=J or pruned:'
            f'channel=I,temporal=J with options I and J, 0 to {MAX_OPTIONS - 1}, of which one may '
            'be left out'
        )
    if pruned:
        left = [_left_in_use(given.get(name, '0+')) for name in _DIMENSIONS]
        return Policy(text, in_use=(left[0], left[1]))
    channel, temporal = (int(given.get(name, '0')) for name in _DIMENSIONS)
    return Policy(text, (channel, temporal))


def _left_in_use(text: str) -> range:
    first = int(text.removesuffix('+'))
    return range(first, MAX_OPTIONS if text.endswith('+') else first + 1)


class Case(NamedTuple):
    """What differs from row to row."""

    policy: Policy
    batch_size: int
    shape: tuple[int, ...]
    """C, T, H and W of a clip."""


class Options(NamedTuple):
    """What is the same for all rows."""

    mode: str = 'infer'
    """``infer``, a prediction, or ``train``, a whole step."""
    device: str = 'cpu'
    dtype: str = 'float32'
    runs: int = 20
    seed: int = 0
    rivals: tuple[str, ...] = RIVALS
    """Networks that are timed beside ``stock`` and ``ours``."""
    executor: str | None = None
    """What executes layers in inference, see :func:`~vared2_mmaction.optimize`, and mixes options
    in training: C++ for ``cpu``, otherwise the definition."""
    compile: str | None = None
    """Backend of ``torch.compile`` for the backbones of ``stock`` and ``ours`` in training."""
    profile: bool = False
    """Whether to tell what the time goes into."""
    videos: tuple[Batch, ...] = ()
    """What is fed, run after run, in batches of one; see
    :func:`~benchmarking.batches.read_batches`. Noise if there is none."""

    def own_help(self) -> list[str]:
        """What is of no use to ``stock``."""
        return ['C++ mixing'] if self.mode == 'train' and self.executor == 'cpu' else []

    def help(self, ours: nn.Module) -> list[str]:
        """What ``stock`` and ``ours`` both get.

        Args:
            ours: The network that is timed.
        """
        if self.mode == 'infer':
            given = ['optimize', executed(ours).removeprefix('executed: ')]
        else:
            given = ['fastest forms', *([f'compile by {self.compile}'] if self.compile else [])]
        return [*given, *([f'{self.dtype} autocast'] if self.dtype != 'float32' else [])]


def clip_shape(
    model: nn.Module, shape: Sequence[int] | None, views: Views | None
) -> tuple[int, ...]:
    """Check the shape of a clip, or take what a pipeline makes.

    Args:
        model: The recognizer.
        shape: C, T, H and W; None takes that of ``views``.
        views: What the pipeline makes of a video.

    Raises:
        ValueError: If the network cannot take such a clip, or nothing tells its shape.
    """
    frames = clip_frames(model)
    if shape is None:
        if views is None or views.size is None:
            raise ValueError('--shape C T H W is needed: the test pipeline leaves it open')
        clip = random_clip(model, None, views)[0]
        if isinstance(model, Recognizer2D):
            clip = clip.transpose(0, 1)
        shape = tuple(clip.shape[-4:])
    text = f'--shape {" ".join(map(str, shape))}'
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f'{text}: expected C T H W, each 1 or more')
    if frames and shape[1] != frames:
        raise ValueError(f'{text}: expected T = {frames}, the frames that the backbone is made for')
    try:
        static_cost(model, make_batch(model, 1, shape, 0).inputs.shape)
    except RuntimeError as error:
        raise ValueError(f'{text}: the network cannot take it: {error}') from error
    return tuple(shape)


def build_network(name: str, model: nn.Module, case: Case, options: Options) -> Network:
    """Make one of the networks from a dynamic recognizer.

    Args:
        name: ``stock``, ``ours`` or ``unhelped``.
        model: The recognizer; stays as it is, so that every row starts from the same weights.
        case: What is measured.
        options: How it is measured.
    """
    infer, policy = options.mode == 'infer', None
    if name == 'ours':
        network = copy.deepcopy(model).to(options.device)
        case.policy.prune(network)
        policy = case.policy.draw(case.batch_size, len(dynamic_layers(model)), options.seed)
    else:
        network = to_static(model).to(options.device)
    if name != 'unhelped':
        network = _optimised(network, options) if infer else _trained(network, options)
    network.train(not infer)
    if not infer and options.dtype != 'float32':
        # Stock heads hand the scores to NumPy, which knows no bfloat16.
        classifier(network).register_forward_hook(_to_float32)
    batches = [batch.to(options.device) for batch in _batches(model, case, options)]
    feed = itertools.cycle(batches)
    context = nullcontext if policy is None else partial(force_policies, network, policy)
    autocast = partial(_autocast, options)
    if infer:
        return Network(network, partial(_predict, network, feed, autocast), context, batches)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9)
    step = partial(_train_step, network, feed, autocast, optimizer)
    return Network(network, step, context, batches, optimizer)


def _optimised(network: nn.Module, options: Options) -> nn.Module:
    return optimize(network, executor=options.executor)


def _trained(network: Any, options: Options) -> nn.Module:
    accelerate(network)
    for layer in dynamic_layers(network).values():
        layer.mix = mix_anywhere if options.executor == 'cpu' else mix_on_gpu
    if options.compile:
        network.backbone.compile(backend=options.compile)
    return network


def _batches(model: nn.Module, case: Case, options: Options) -> list[Batch]:
    size = case.batch_size
    if not options.videos:
        return [make_batch(model, size, case.shape, options.seed)]
    starts = range(0, len(options.videos) - size + 1, size)
    return [Batch.of(options.videos[start : start + size]) for start in starts]


def _to_float32(_: nn.Module, args: Any, scores: Tensor) -> Tensor:
    return scores.float()


def _autocast(options: Options) -> AbstractContextManager:
    dtype = DTYPES[options.dtype]
    return torch.autocast(options.device, dtype=dtype, enabled=dtype != torch.float32)


@torch.no_grad()
def _predict(model: nn.Module, feed: Iterator[Batch], autocast: Callable) -> object:
    batch = next(feed)
    with autocast():
        return model(batch.inputs, batch.data_samples, mode='predict')


def _train_step(
    model: Any, feed: Iterator[Batch], autocast: Callable, optimizer: torch.optim.Optimizer
) -> None:
    batch = next(feed)
    samples = copy.deepcopy(batch.data_samples)  # a detector changes them
    with autocast():
        losses = model(batch.inputs, samples, mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def run_case(
    model: nn.Module, case: Case, options: Options, progress: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Measure one row.

    Args:
        model: A dynamic recognizer, on the CPU.
        case: What is measured.
        options: How it is measured.
        progress: Called whenever all networks had a run, ``WARMUP + options.runs`` times.

    Returns:
        The row. ``clips`` is what was fed, which decides the compute of learned policies. Times
        are medians in milliseconds; ``time_ratio`` is the median of the ratios of ours to stock
        within the runs, and ``time_ratio_p10`` and ``time_ratio_p90`` are their percentiles.
        Memory is in megabytes (10^6 bytes). ``macs_ratio`` is what the whole network computes,
        gates and cheap operations included; see :func:`macs_ratio`. ``realised`` is the share of
        the saved multiply-adds that shows as saved time, None where hardly any are saved. With a
        profile, ``static_operations_ms`` and ``dynamic_operations_ms`` are what
        :func:`~benchmarking.operations.operation_times` finds, and ``realised_bound`` is
                what would be realised if nothing but convolutions took time.
    """
    torch.compiler.reset()  # what was compiled for other rows counts against a limit
    ours = build_network('ours', model, case, options._replace(compile=None))
    clip = (1, *ours.batches[0].inputs.shape[1:])
    ratio = macs_ratio(ours, static_cost(model, clip))
    clips = f'{len(ours.batches) * case.batch_size} test videos' if options.videos else 'noise'
    del ours
    peaks, first = {}, options._replace(videos=options.videos[: case.batch_size])
    for name in ('stock', 'ours'):  # one at a time: on a GPU the other would count
        gc.collect()
        peaks[name] = _peak(build_network(name, model, case, first), options.device)
    names = ('stock', 'ours', *options.rivals)
    networks = [build_network(name, model, case, options) for name in names]
    seconds = time_in_turn(networks, options.runs, options.device, progress)
    profiled = _profile(networks[0], networks[1], options.runs, ratio) if options.profile else {}
    return {
        'mode': options.mode,
        'policy': case.policy.name,
        'batch_size': case.batch_size,
        'shape': list(case.shape),
        'clips': clips,
        'device': options.device,
        'dtype': options.dtype,
        'macs_ratio': ratio,
        **summarise(dict(zip(names, seconds, strict=True)), ratio),
        'peak_memory_ratio': peaks['ours'] / peaks['stock'],
        'static_peak_mb': peaks['stock'] / 1e6,
        'dynamic_peak_mb': peaks['ours'] / 1e6,
        'help': options.help(networks[1].model),
        'own_help': options.own_help(),
        'threads': torch.get_num_threads(),
        'runs': options.runs,
        'seed': options.seed,
        **profiled,
    }


def _profile(stock: Network, ours: Network, runs: int, share: float) -> dict[str, Any]:
    found = []
    for network in (stock, ours):
        with network.context():
            found.append(operation_times(network.call, runs))
    static, dynamic = found
    return {
        'static_operations_ms': static,
        'dynamic_operations_ms': dynamic,
        'realised_bound': realised(convolution_time(dynamic) / convolution_time(static), share),
    }


def macs_ratio(network: Network, static: int) -> float:
    """Run a dynamic network and take its multiply-adds from what the layers decided.

    Where layers decide on the device, which is in training and on GPUs, they compute the dearest
    options in use, whatever they decide.

    Args:
        network: The network; costs are means over its batches, each of which it is fed once.
        static: Multiply-adds of the stock recognizer for a clip.

    Returns:
        Executed over static multiply-adds of the whole network. In training those of the forward
        pass, of which the backward pass is a multiple on both sides.
    """
    executed, charged, overhead = _charges(network, network.context())
    layers = dynamic_layers(network.model).values()
    if any(getattr(layer, 'executed_by', None) not in SKIPPING for layer in layers):
        dearest = torch.tensor([[[which[0] for which in layer.in_use] for layer in layers]])
        executed, *_ = _charges(network, force_policies(network.model, dearest))
    return (static - charged + executed + overhead) / static


def _charges(network: Network, context: AbstractContextManager) -> list[float]:
    """Executed and static multiply-adds and overhead, for a clip."""
    costs: list[Tensor] = []

    def keep(_: nn.Module, args: Any, output: DynamicFeatures) -> None:
        costs.append(output.decisions.detach()[..., :3].sum(1).mean(0))

    backbone: Any = network.model.backbone
    with backbone.register_forward_hook(keep), context:
        for _ in network.batches:
            network.call()
    return torch.stack(costs).mean(0).tolist()


def _peak(network: Network, device: str) -> int:
    with network.context():
        if device == 'cuda':  # a graph takes its memory when it is captured
            return peak_bytes(partial(_call_until_warm, network), torch.device(device))
        _call_until_warm(network)  # the optimizer's state is there after the first
        existing = [*state_tensors(network.model, network.optimizer), network.batches[0].inputs]
        return peak_bytes(network.call, torch.device(device), existing)


def _call_until_warm(network: Network) -> None:
    for _ in range(WARMUP + 1):
        network.call()
