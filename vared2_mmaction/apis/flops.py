# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Where a network's multiply-adds go: static, decided and executed, stage by stage.

*Static* is the stock network, *expected* what the decisions of the layers say, *executed* what
``torch.utils.flop_counter`` saw while a clip ran through the network, without gates and cheap
operations. Layers are executed one by one by the eager executor; expected and executed are equal,
layer by layer, or an error is raised.
"""

import copy
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmaction.models.recognizers import Recognizer2D, Recognizer3D
from mmaction.registry import DATASETS, MODELS
from mmaction.structures import ActionDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils.flop_counter import FlopCounterMode

from ..executors import ExecutedConv
from ..models.dynamize import DynamicBackbone, DynamicFeatures, is_own_parameter
from ..models.kinds import Convolution
from ..models.policy import dynamic_layers
from ..models.static import is_detector, run_once, to_static
from .check import check_config
from .weights import load_weights

_RESIDUAL_STAGE = re.compile(r'((?P<pathway>.+?)\.)?layer\d+(?=[._]|$)')
_CROPS = {'CenterCrop': 1, 'ThreeCrop': 3, 'TenCrop': 10}


class CostMismatchError(RuntimeError):
    """A layer executed something else than it decided."""


class Row(NamedTuple):
    """A stage. Costs are multiply-adds a clip, means over videos; "own" are the parts that a
    dynamic layer adds, gate and cheap operations, whose cost is the overhead."""

    stage: str
    parameters: int
    own_parameters: int
    static: float
    expected: float
    expected_min: float
    expected_max: float
    executed: float
    overhead: float


class CostTable(NamedTuple):
    """Multiply-adds of a recognizer, or of a detector for one box, by stage."""

    stages: list[Row]
    total: Row
    videos: int
    clip_sizes: list[tuple[int, ...]]
    """Frames, height and width of the clips."""
    compute_ratio: float
    """Executed over static multiply-adds of the backbone's convolutions, mean over videos."""
    overhead_ratio: float
    """Of the static network's multiply-adds."""


class Views(NamedTuple):
    """What a pipeline makes of a video: clips along time, and crops of each; ``size`` is height
    and width, None where the pipeline leaves them open."""

    frames: int
    clips: int
    crops: int
    size: tuple[int, int] | None


def measure(model: nn.Module, videos: Iterable[Iterable[Tensor]]) -> CostTable:
    """Run clips through a recognizer and count what they take.

    Args:
        model: A dynamic or stock ``Recognizer2D``, ``Recognizer3D`` or ``FastRCNN``; is put into
            evaluation mode.
        videos: For each video its clips, preprocessed, (1, 1, C, T, H, W) for a ``Recognizer3D``,
            (1, T, C, H, W) for a ``Recognizer2D`` and (1, C, T, H, W) for a ``FastRCNN``.

    Raises:
        CostMismatchError: If a layer executed something else than it decided.
        ValueError: If the network cannot take a clip.
    """
    model.eval()
    network = skipping(model)
    stages = stage_of_modules(model)
    names = list(dict.fromkeys(stages.values()))
    static: dict[torch.Size, dict[str, int]] = {}
    costs, ratios = [], []
    for clips in videos:
        sums, shares = [], []
        for clip in clips:
            if clip.shape not in static:
                static[clip.shape] = _count_static(model, clip)
            modules, share = _measure_clip(network, clip, static[clip.shape])
            sums.append(np.zeros((len(names), 4)))
            shares.append(share)
            for module, cost in modules.items():
                sums[-1][names.index(stages[module])] += cost
        costs.append(np.mean(sums, axis=0))
        ratios.append(np.mean(shares))
    table, parameters = np.stack(costs), np.zeros((len(names), 2), dtype=int)
    for key, parameter in model.named_parameters():
        own = parameter.numel() * is_own_parameter(key)
        parameters[names.index(stages[key.rpartition('.')[0]])] += (parameter.numel(), own)
    rows = [_row(name, parameters[i], table[:, i]) for i, name in enumerate(names)]
    total = _row('total', parameters.sum(0), table.sum(1))
    frames = 1 if isinstance(model, Recognizer2D) else -3
    return CostTable(
        stages=[row for row in rows if row.parameters or row.static],
        total=total,
        videos=len(table),
        clip_sizes=[(shape[frames], *shape[-2:]) for shape in static],
        compute_ratio=float(np.mean(ratios)),
        overhead_ratio=total.overhead / total.static,
    )


def _row(stage: str, parameters: np.ndarray, costs: np.ndarray) -> Row:
    """A row from the parameters (2,) and the costs of each video (videos, 4) of a stage."""
    static, expected, executed, overhead = costs.mean(0).tolist()
    least, most = costs[:, 1].min().item(), costs[:, 1].max().item()
    every, own = parameters.tolist()
    return Row(stage, every, own, static, expected, least, most, executed, overhead)


def skipping(model: nn.Module) -> nn.Module:
    """A copy of a model whose dynamic layers compute for each clip what they decided."""
    network: Any = copy.deepcopy(model)
    for name, layer in dynamic_layers(network).items():
        executed = ExecutedConv(layer, name)
        executed.forced = layer.forced
        network.set_submodule(name, executed)
    if isinstance(network.backbone, DynamicBackbone):
        network.backbone.find_layers()
    return network


def _measure_clip(
    model: nn.Module, clip: Tensor, static: dict[str, int]
) -> tuple[dict[str, tuple[float, ...]], float]:
    """Run one clip and compare what was executed with what was decided.

    Of the static multiply-adds by module it makes static, expected, executed and overhead ones, and
    the backbone's compute ratio.
    """
    tables: list[Tensor] = []

    def keep_decisions(_: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, DynamicFeatures):
            tables.append(output.decisions[0, :, :3])  # one clip: all rows are alike

    backbone: Any = model.backbone
    with backbone.register_forward_hook(keep_decisions):
        counted = count_modules(model, clip)
    decided, ratio = {}, 1.0
    if tables:
        layers = [f'backbone.{name}' for name in backbone.dynamic_layers]
        decided = dict(zip(layers, tables[0][1:].tolist(), strict=True))
        executed, charged, _ = tables[0].sum(0).tolist()
        kinds = (*Convolution, ExecutedConv)
        convolutions = (n for n in static if isinstance(model.get_submodule(n), kinds))
        of_backbone = (static[name] for name in convolutions if name.startswith('backbone.'))
        _agree('backbone', 'static', charged, sum(of_backbone))
        ratio = executed / charged
    costs: dict[str, tuple[float, ...]] = {}
    for name in {**static, **counted}:
        if not is_own_parameter(name):
            macs = static.get(name, 0)
            expected, charged, overhead = decided.get(name, (macs, macs, 0))
            _agree(name, 'static', charged, macs)
            _agree(name, 'executed', expected, counted[name])
            costs[name] = (macs, expected, counted[name], overhead)
    return costs, ratio


def _agree(layer: str, what: str, decided: float, counted: int) -> None:
    if decided != counted:
        found = f'{what} multiply-adds, {decided:.0f} by its decision, {counted} counted'
        raise CostMismatchError(f'{layer}: expected the same {found}')


def count_modules(model: Any, clip: Tensor) -> Counter[str]:
    """Multiply-adds of a forward pass, by name of the innermost module that computed.

    ``FlopCounterMode`` tells modules apart itself, but not those whose parents are never called,
    such as the pathways of SlowFast.
    """
    names = {module: name for name, module in model.named_modules()}
    counts: Counter[str] = Counter()
    running = ['']

    def charge() -> None:
        counts[running[-1]] += counter.get_total_flops() // 2 - counts.total()

    def enter(module: nn.Module, _: Any) -> None:
        charge()
        running.append(names.get(module, running[-1]))

    def leave(*_: Any) -> None:
        charge()
        running.pop()

    hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave)
    with hooks[0], hooks[1], torch.no_grad(), FlopCounterMode(display=False) as counter:
        run_once(model, clip)
        charge()
    return +counts


def _count_static(model: nn.Module, clip: Tensor) -> dict[str, int]:
    """Multiply-adds of the stock network by module; nothing is computed."""
    static = to_static(model).to('meta')
    try:
        return count_modules(static, clip.to('meta'))
    except RuntimeError as error:
        where = f'clip {tuple(clip.shape)}, of --shape or the pipeline'
        raise ValueError(f'{where}: the network cannot take it: {error}') from error


def stage_of_modules(model: nn.Module) -> dict[str, str]:
    """Stage of every module of a recognizer or detector by name, in the order of registration.

    A backbone's stages are ``stem``, ``layer1``, ``layer2`` and so on, with the pathway before
    them where there are several; what comes after the residual stages, and all of a backbone
    without any, goes by the first component of its name. The others are ``head`` and ``neck``.
    """
    names = [name for name, _ in model.named_modules()]
    prefix = 'backbone.'
    inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    stages = {prefix + name: stage for name, stage in _backbone_stages(inside).items()}
    parts = {name: name.partition('.')[0] for name in names}
    heads = ('cls_head', 'roi_head')
    return {n: stages.get(n, 'head' if p in heads else p) for n, p in parts.items()}


def _backbone_stages(names: list[str]) -> dict[str, str]:
    matches = {name: _RESIDUAL_STAGE.match(name) for name in names}
    pathways = {match['pathway'] for match in matches.values() if match}
    entered: set[str | None] = set()  # pathways whose first residual stage was met
    stem: set[tuple[str | None, str]] = set()
    stages = {}
    for name, match in matches.items():
        if match:
            entered.add(match['pathway'])
            stages[name] = match[0]
            continue
        pathway = next((p for p in pathways if p and f'{name}.'.startswith(f'{p}.')), None)
        component = name.removeprefix(f'{pathway}.').partition('.')[0].removesuffix('_lateral')
        if pathway in pathways - entered:
            stem.add((pathway, component))
        stage = 'stem' if (pathway, component) in stem else component
        stages[name] = f'{pathway}.{stage}' if pathway else stage
    return stages


def load_model(cfg: Config, checkpoint: str | None = None) -> tuple[nn.Module, str]:
    """Build a config's recognizer or detector, and say where its weights are from.

    Gates that the checkpoint lacks stay as initialised.

    Raises:
        ValueError: If the config is wrong, or the checkpoint is that of another network.
        FileNotFoundError: If there is no such checkpoint.
    """
    check_config(cfg)
    init_default_scope(cfg.get('default_scope') or 'mmaction')
    for key in ('max_testing_views', 'fcn_test'):  # clips come one at a time; heads keep their fc
        (cfg.model.get('test_cfg') or {}).pop(key, None)
    model = MODELS.build(cfg.model)
    if not isinstance(model, Recognizer2D | Recognizer3D) and not is_detector(model):
        expected = 'Recognizer2D, Recognizer3D or FastRCNN'
        raise ValueError(f'model.type={cfg.model.type!r}: expected {expected}')
    if checkpoint is None:
        return model, 'no checkpoint, weights as initialised'
    return model, load_weights(model, checkpoint)


def views_of_split(cfg: Config, model: nn.Module, split: str) -> Views | None:
    """Read clips and crops from the pipeline of a split; None where it does not tell."""
    pipeline = (cfg.get(f'{split}_dataloader') or {}).get('dataset', {}).get('pipeline') or []
    views, crops, size = None, 1, None
    for step in pipeline:
        kind = str(step['type']).rpartition('.')[2]
        if 'clip_len' in step:
            positions = step.get('num_sample_positions', 10 if kind == 'DenseSampleFrames' else 1)
            repeats = positions * (2 if step.get('twice_sample') else 1)
            frames, clips = step['clip_len'], step.get('num_clips', 1)
            if isinstance(model, Recognizer2D):  # what is sampled are the segments of a clip
                frames, clips = clip_frames(model) or frames * clips, frames * clips
                clips, repeats = clips * repeats // frames, 1
            views = Views(frames, clips * repeats, crops, size)
        elif kind in _CROPS:
            crops, size = _CROPS[kind], step['crop_size']
        elif kind == 'Resize':
            size = None if step.get('keep_ratio', True) else step['scale']
    if size is not None:  # pipelines write (width, height)
        size = (size, size) if isinstance(size, int) else (size[1], size[0])
    return views and views._replace(crops=crops, size=size)


def clip_frames(model: nn.Module) -> int | None:
    """Frames of a clip, where a 2-D backbone nails them down."""
    backbone: Any = model.backbone
    return getattr(backbone, 'clip_length', None) or getattr(backbone, 'num_segments', None)


def random_clip(
    model: nn.Module, shape: Sequence[int] | None, views: Views | None, seed: int = 0
) -> Tensor:
    """A clip of noise for a recognizer or detector.

    ``shape`` is (C, H, W) for a ``Recognizer2D`` and (C, T, H, W) for others; None takes that of
    ``views``, what the pipeline makes of a video.
    """
    flat = isinstance(model, Recognizer2D)
    wanted = 'C H W' if flat else 'C T H W'
    backbone: Any = model.backbone
    if shape is None:
        if views is None or views.size is None:
            raise ValueError(f'--shape {wanted} is needed: the pipeline leaves it open')
        convolutions = (m for m in backbone.modules() if isinstance(m, Convolution))
        channels = next((convolution.in_channels for convolution in convolutions), 3)
        shape = (channels, *(() if flat else (views.frames,)), *views.size)
    if len(shape) != len(wanted.split()) or min(shape) < 1:
        given = ' '.join(map(str, shape))
        raise ValueError(f'--shape {given}: expected {wanted} for a {type(model).__name__}')
    frames = clip_frames(model) or (views.frames if views else 1)
    full = (1, frames, *shape) if flat else (1, *shape) if is_detector(model) else (1, 1, *shape)
    return torch.randn(full, generator=torch.Generator().manual_seed(seed))


def read_videos(
    cfg: Config, model: nn.Module, split: str, number: int
) -> Iterator[Iterator[Tensor]]:
    """Preprocessed clips of some videos; decoded when asked for. See :func:`read_clips`."""
    preprocess: Any = model.data_preprocessor
    for clips, sample in read_clips(cfg, model, split, number):
        packed = ({'inputs': [clip], 'data_samples': [sample]} for clip in clips)
        yield (preprocess(data)['inputs'] for data in packed)


def read_clips(
    cfg: Config, model: nn.Module, split: str, number: int
) -> Iterator[tuple[Sequence[Tensor], ActionDataSample]]:
    """Clips of some videos, evenly spread over the list of a split, and what is known of a video.

    Raises:
        ValueError: If there is no such split, or a video cannot be read.
        FileNotFoundError: If an annotation file or a video is missing.
    """
    if (loader := cfg.get(f'{split}_dataloader')) is None:
        raise ValueError(f'--split {split}: the config has no {split}_dataloader')
    check_config(cfg, split)
    dataset = DATASETS.build(loader.dataset)
    views = views_of_split(cfg, model, split)
    for index in np.linspace(0, len(dataset) - 1, min(number, len(dataset))).round():
        try:
            packed = dataset[int(index)]
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        frames = 1
        if isinstance(model, Recognizer2D):
            taken = len(packed['inputs'])
            frames = clip_frames(model) or (views.frames if views else taken)
            if taken % frames:
                wanted = f'clips of {frames}, the num_segments of the backbone'
                raise ValueError(f'{split}_dataloader: {taken} frames a video; expected {wanted}')
        clips = [packed['inputs']] if is_detector(model) else packed['inputs'].split(frames)
        yield clips, packed['data_samples']
