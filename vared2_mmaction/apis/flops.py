# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Where a recognizer's multiply-adds go: static, decided and executed, stage by stage.

*Static* is the stock network, *expected* what the decisions of the layers say, *executed* what
``torch.utils.flop_counter`` saw while a clip ran through the network, without gates and cheap
operations. In evaluation expected and executed are equal, layer by layer, or an error is raised.
"""

from __future__ import annotations

import copy
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from mmaction.models.recognizers import Recognizer2D, Recognizer3D
from mmaction.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from ..models.dynamize import DynamicBackbone, DynamicFeatures, is_own_parameter
from ..models.static import to_static
from .check import check_config

_RESIDUAL_STAGE = re.compile(r'((?P<pathway>.+?)\.)?(?P<stage>layer\d+)(?=[._]|$)')


_CROPS = {'CenterCrop': 1, 'ThreeCrop': 3, 'TenCrop': 10}


class CostMismatchError(RuntimeError):
    """A layer executed something else than it decided."""


class Cost(NamedTuple):
    """Multiply-adds a clip."""

    static: float = 0
    expected: float = 0
    executed: float = 0
    overhead: float = 0
    """Those of gates and cheap operations, on top of the others."""


class ClipCost(NamedTuple):
    """What one clip took."""

    modules: dict[str, Cost]
    """By name of the module that computed."""
    compute_ratio: float
    """Executed over static multiply-adds of the backbone's convolutions."""


@dataclass(frozen=True)
class Row:
    """A stage of the table. Costs are multiply-adds a clip, means over videos."""

    stage: str
    parameters: int
    """All parameters, those of gates and cheap operations among them."""
    own_parameters: int
    """Parameters of gates and cheap operations."""
    static: float
    expected: float
    expected_min: float
    """Of the video that needs least."""
    expected_max: float
    executed: float
    overhead: float


@dataclass(frozen=True)
class CostTable:
    """Multiply-adds of a recognizer by stage."""

    rows: tuple[Row, ...]
    total: Row
    videos: int
    compute_ratio: float
    """Executed over static multiply-adds of the backbone's convolutions, mean over videos."""
    overhead_ratio: float
    """Overhead over static multiply-adds of the network."""


def measure(model: nn.Module, videos: Iterable[Iterable[Tensor]]) -> CostTable:
    """Run clips through a recognizer and count what they take.

    Args:
        model: A dynamic or stock ``Recognizer2D`` or ``Recognizer3D``; is put into evaluation mode.
        videos: For each video its clips, preprocessed, (1, 1, C, T, H, W) for a
            ``Recognizer3D`` and (1, T, C, H, W) for a ``Recognizer2D``.

    Raises:
        CostMismatchError: If a layer executed something else than it decided.
        ValueError: If there is no clip, or the network cannot take one.
    """
    model.eval()
    stages = stage_of_modules(model)
    names = list(dict.fromkeys(stages.values()))
    static: dict[torch.Size, dict[str, int]] = {}
    costs, ratios = [], []  # of each video
    for clips in videos:
        measured = []
        for clip in clips:
            if clip.shape not in static:
                static[clip.shape] = _count_static(model, clip.shape)
            measured.append(measure_clip(model, clip, static[clip.shape]))
        if not measured:
            raise ValueError('a video has no clips')
        costs.append(np.mean([_sum_stages(clip, stages, names) for clip in measured], axis=0))
        ratios.append(np.mean([clip.compute_ratio for clip in measured]))
    if not costs:
        raise ValueError('there is no video to count')
    table = np.stack(costs)  # (videos, stages, 4)
    parameters = _count_parameters(model, stages, names)
    rows = [
        _row(name, parameters[i], table[:, i])
        for i, name in enumerate(names)
        if parameters[i].any() or table[:, i].any()
    ]
    total = _row('total', parameters.sum(0), table.sum(1))
    overhead = total.overhead / total.static
    return CostTable(tuple(rows), total, len(table), float(np.mean(ratios)), overhead)


def measure_clip(model: nn.Module, clip: Tensor, static: dict[str, int]) -> ClipCost:
    """Run one clip and compare what was executed with what was decided.

    Args:
        model: A recognizer in evaluation mode.
        clip: The clip, of a shape that the recognizer's ``extract_feat`` takes.
        static: Multiply-adds of the stock network by name of the module.

    Raises:
        CostMismatchError: Naming the layer, if the two differ.
    """
    tables: list[Tensor] = []

    def keep_decisions(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, DynamicFeatures):
            tables.append(output.decisions[0])  # one clip: all rows are alike

    handle = model.backbone.register_forward_hook(keep_decisions)  # type: ignore[operator,union-attr]
    try:
        executed = count_modules(model, clip)
    finally:
        handle.remove()
    if not tables:
        decided, ratio = {}, 1.0
    else:
        table = torch.stack(tables).sum(0)
        decided = _decisions_by_module(model, table, static)
        ratio = (table[:, 0].sum() / table[:, 1].sum()).item()
    modules = {}
    for name in {**static, **executed}:
        if is_own_parameter(name):
            continue
        fixed = static.get(name, 0)
        expected, charged, overhead = decided.get(name, (fixed, fixed, 0))
        _agree(name, 'static', charged, fixed)
        _agree(name, 'executed', expected, executed[name])
        modules[name] = Cost(fixed, expected, executed[name], overhead)
    return ClipCost(modules, ratio)


def count_modules(model: nn.Module, clip: Tensor) -> Counter[str]:
    """Multiply-adds of a forward pass, by name of the innermost module that computed.

    ``FlopCounterMode`` finds the names itself, but not those of modules whose parents are never
    called, such as the pathways of SlowFast.
    """
    counts: Counter[str] = Counter()
    running, counted = [''], 0

    def charge() -> None:
        nonlocal counted
        total = counter.get_total_flops() // 2
        counts[running[-1]] += total - counted
        counted = total

    def enter(name: str) -> Callable:
        def hook(*_: Any) -> None:
            charge()
            running.append(name)

        return hook

    def leave(*_: Any) -> None:
        charge()
        running.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name), prepend=True))
        handles.append(module.register_forward_hook(leave))
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            _classify(model, clip)
            charge()
    finally:
        for handle in handles:
            handle.remove()
    return +counts


def stage_of_modules(model: nn.Module) -> dict[str, str]:
    """Stage of every module of a recognizer by name, in the order of registration.

    A backbone's stages are ``stem``, ``layer1``, ``layer2`` and so on, with the pathway before
    them where there are several; what comes after the residual stages, and all of a backbone
    without any, goes by the first component of its name. The others are ``head`` and ``neck``.
    """
    split = [name.partition('.') for name, _ in model.named_modules()]
    inside = [rest for part, _, rest in split if part == 'backbone' and rest]
    of_backbone = dict(zip(inside, _backbone_stages(inside), strict=True))
    stages = {}
    for part, dot, rest in split:
        stage = 'head' if part == 'cls_head' else part
        stages[part + dot + rest] = of_backbone.get(rest, part) if part == 'backbone' else stage
    return stages


def _backbone_stages(names: list[str]) -> list[str]:
    """Stages of the modules of a backbone."""
    matches = [_RESIDUAL_STAGE.match(name) for name in names]
    pathways = {match['pathway'] for match in matches if match}
    entered: set[str | None] = set()  # pathways whose first residual stage was met
    stem: set[tuple[str | None, str]] = set()
    stages = []
    for name, match in zip(names, matches, strict=True):
        if match:
            entered.add(match['pathway'])
            stages.append(match[0])
            continue
        pathway = next((p for p in pathways if p and f'{name}.'.startswith(f'{p}.')), None)
        component = name.removeprefix(f'{pathway}.').partition('.')[0].removesuffix('_lateral')
        if pathway in pathways and pathway not in entered:
            stem.add((pathway, component))
        stage = 'stem' if (pathway, component) in stem else component
        stages.append(stage if pathway is None else f'{pathway}.{stage}')
    return stages


def _classify(model: nn.Module, clip: Tensor) -> None:
    """What is counted: a detector would end with its neck."""
    features, kwargs = model.extract_feat(clip, test_mode=True)  # type: ignore[operator]
    model.cls_head(features, **kwargs)  # type: ignore[operator]


def _count_static(model: nn.Module, shape: Sequence[int]) -> dict[str, int]:
    """Multiply-adds of the stock network by module; nothing is computed."""
    static = to_static(model).to('meta')
    static.eval()
    try:
        return count_modules(static, torch.empty(tuple(shape), device='meta'))
    except RuntimeError as error:
        raise ValueError(f'the network cannot take a clip {tuple(shape)}: {error}') from error


def _decisions_by_module(
    model: nn.Module, table: Tensor, static: dict[str, int]
) -> dict[str, tuple[float, float, float]]:
    """Executed, static and overhead multiply-adds of every dynamic layer."""
    backbone = model.backbone
    assert isinstance(backbone, DynamicBackbone)
    layers = [f'backbone.{name}' for name in backbone.dynamic_layers]
    (fixed, *_), *costs = table[:, :3].tolist()
    convolutions = (
        macs
        for name, macs in static.items()
        if name not in layers
        and name.startswith('backbone.')
        and isinstance(model.get_submodule(name), _ConvNd)
    )
    _agree('convolutions that are not dynamic', 'static', fixed, sum(convolutions))
    return {name: tuple(cost) for name, cost in zip(layers, costs, strict=True)}


def _agree(layer: str, what: str, decided: float, counted: float) -> None:
    if decided != counted:
        raise CostMismatchError(
            f'{layer}: the decision says {decided:.0f} {what} multiply-adds, counted were '
            f'{counted:.0f}'
        )


def _sum_stages(clip: ClipCost, stages: dict[str, str], names: list[str]) -> np.ndarray:
    """Costs of a clip, (stages, 4)."""
    sums = np.zeros((len(names), len(Cost._fields)))
    for module, cost in clip.modules.items():
        sums[names.index(stages[module])] += cost
    return sums


def _count_parameters(model: nn.Module, stages: dict[str, str], names: list[str]) -> np.ndarray:
    """Parameters of each stage, (stages, 2): all, and those of gates and cheap operations."""
    counts = np.zeros((len(names), 2), dtype=int)
    for key, parameter in model.named_parameters():
        stage = names.index(stages[key.rpartition('.')[0]])
        counts[stage] += (parameter.numel(), parameter.numel() * is_own_parameter(key))
    return counts


def _row(stage: str, parameters: np.ndarray, costs: np.ndarray) -> Row:
    """A row from the parameters (2,) and the costs of each video (videos, 4) of a stage."""
    mean, expected = Cost(*costs.mean(0).tolist()), costs[:, Cost._fields.index('expected')]
    return Row(
        stage,
        *parameters.tolist(),
        static=mean.static,
        expected=mean.expected,
        expected_min=float(expected.min()),
        expected_max=float(expected.max()),
        executed=mean.executed,
        overhead=mean.overhead,
    )


def load_model(cfg: Config, checkpoint: str | None = None) -> tuple[nn.Module, str]:
    """Build a config's recognizer.

    Args:
        cfg: The config; its ``load_from`` is not looked at.
        checkpoint: Path or URL; one of the static network has no gates, which then stay as
            initialised.

    Returns:
        The model, and where its weights are from.

    Raises:
        ValueError: If the config is wrong, or the checkpoint is that of another network.
        FileNotFoundError: If there is no such checkpoint.
    """
    cfg = copy.deepcopy(cfg)
    cfg.load_from = None
    (cfg.model.get('test_cfg') or {}).pop('max_testing_views', None)  # clips come one at a time
    check_config(cfg)
    init_default_scope(cfg.get('default_scope') or 'mmaction')
    model = MODELS.build(cfg.model)
    if not isinstance(model, Recognizer2D | Recognizer3D):
        raise ValueError(
            f'model.type={cfg.model.type!r}: expected a Recognizer2D or a Recognizer3D'
        )
    if checkpoint is None:
        return model, 'no checkpoint, weights as built'
    if '://' not in checkpoint and not os.path.isfile(checkpoint):
        raise FileNotFoundError(f'CHECKPOINT={checkpoint!r}: no such file')
    try:
        loaded = load_checkpoint(model, checkpoint, map_location='cpu', logger='silent')
    except Exception as error:  # whatever unpickling some file may raise
        raise ValueError(f'CHECKPOINT={checkpoint!r} cannot be loaded: {error}') from error
    missing = _missing_gates(model, loaded.get('state_dict', loaded), checkpoint)
    without = ', which has no gates: they are as initialised' if missing else ''
    return model, f'checkpoint {checkpoint}{without}'


def _missing_gates(model: nn.Module, given: dict[str, Any], checkpoint: str) -> bool:
    """Whether a checkpoint lacks the gates; MMEngine would only log any other difference."""
    given = {key.removeprefix('module.'): value for key, value in given.items()}
    missing = False
    for key, parameter in model.named_parameters():
        found = getattr(given.get(key), 'shape', None)
        if found is None and is_own_parameter(key):
            missing = True
        elif found != parameter.shape:
            what = 'nothing' if found is None else f'shape {tuple(found)}'
            raise ValueError(
                f'CHECKPOINT={checkpoint!r} is of another network: expected {key} of shape '
                f'{tuple(parameter.shape)}, found {what}'
            )
    return missing


class Views(NamedTuple):
    """What a test pipeline makes of a video."""

    frames: int
    """Frames of a clip."""
    clips: int
    """Clips along time."""
    crops: int
    size: tuple[int, int] | None
    """Height and width, None where the pipeline leaves them open."""


def views_of_pipeline(cfg: Config, model: nn.Module, split: str = 'test') -> Views | None:
    """Read clips and crops from the pipeline of a split; None where it does not tell."""
    pipeline = (cfg.get(f'{split}_dataloader') or {}).get('dataset', {}).get('pipeline') or []
    frames = clips = 0
    crops, size = 1, None
    for step in pipeline:
        kind = str(step['type']).rpartition('.')[2]
        if 'clip_len' in step:
            positions = step.get('num_sample_positions', 10 if kind == 'DenseSampleFrames' else 1)
            repeats = positions * (2 if step.get('twice_sample') else 1)
            frames, clips = step['clip_len'], step.get('num_clips', 1) * repeats
            if isinstance(model, Recognizer2D):  # sampled clips are the segments of one
                taken = frames * clips
                frames = clip_frames(model) or taken // repeats
                clips = taken // frames
        elif kind in _CROPS:
            crops, size = _CROPS[kind], step['crop_size']
        elif kind == 'Resize':
            size = None if step.get('keep_ratio', True) else step['scale']
    if not clips:
        return None
    if size is not None:
        size = (size, size) if isinstance(size, int) else (size[1], size[0])
    return Views(frames, clips, crops, size)


def clip_frames(model: nn.Module) -> int | None:
    """Frames of a clip, where a 2-D backbone nails them down."""
    backbone: Any = model.backbone
    return getattr(backbone, 'clip_length', None) or getattr(backbone, 'num_segments', None)


def default_shape(cfg: Config, model: nn.Module, split: str = 'test') -> tuple[int, ...]:
    """The clip (C, T, H, W) of a split's pipeline."""
    views = views_of_pipeline(cfg, model, split)
    if views is None or views.size is None:
        raise ValueError(
            f'--shape is needed: the pipeline of {split}_dataloader does not tell the clip'
        )
    backbone: Any = model.backbone
    convolutions = (m for m in backbone.modules() if isinstance(m, _ConvNd))
    channels = next((convolution.in_channels for convolution in convolutions), 3)
    return (channels, views.frames, *views.size)


def full_shape(model: nn.Module, shape: Sequence[int], views: Views | None) -> tuple[int, ...]:
    """The clip (C, T, H, W) that ``--shape`` asks for.

    Raises:
        ValueError: If the shape has the wrong rank, or a number below 1.
    """
    frames = isinstance(model, Recognizer2D)
    wanted = 'C H W' if frames else 'C T H W'
    if len(shape) != len(wanted.split()) or min(shape) < 1:
        given = ' '.join(map(str, shape))
        raise ValueError(
            f'--shape {given}: expected {wanted}, whole numbers from 1, for a '
            f'{type(model).__name__}'
        )
    if not frames:
        return tuple(shape)
    segments = clip_frames(model) or (views.frames if views else 1)
    return (shape[0], segments, *shape[1:])


def random_clip(model: nn.Module, clip: Sequence[int], seed: int = 0) -> Tensor:
    """A seeded clip (C, T, H, W) as the recognizer takes it."""
    c, t, h, w = clip
    shape = (1, t, c, h, w) if isinstance(model, Recognizer2D) else (1, 1, c, t, h, w)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def read_videos(
    cfg: Config, model: nn.Module, number: int, split: str = 'test'
) -> Iterator[Iterator[Tensor]]:
    """Clips of some videos of a split, spread evenly over its list; decoded when asked for.

    Raises:
        ValueError: If the config has no such split, or a video cannot be read.
        FileNotFoundError: If an annotation file or a video is missing.
    """
    cfg = copy.deepcopy(cfg)
    cfg.load_from = None
    loader = cfg.get(f'{split}_dataloader')
    if loader is None:
        raise ValueError(f'--split={split}: the config has no {split}_dataloader')
    check_config(cfg, split)
    dataset = DATASETS.build(loader.dataset)
    number = min(number, len(dataset))
    for i in np.linspace(0, len(dataset) - 1, number).round().astype(int).tolist():
        try:
            packed = dataset[i]
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        yield _clips_of_video(cfg, model, split, packed)


def _clips_of_video(
    cfg: Config, model: nn.Module, split: str, packed: dict[str, Any]
) -> Iterator[Tensor]:
    inputs, frames = packed['inputs'], 1
    if isinstance(model, Recognizer2D):
        views = views_of_pipeline(cfg, model, split)
        frames = clip_frames(model) or (views.frames if views else len(inputs))
        if len(inputs) % frames:
            raise ValueError(
                f'{split}_dataloader.dataset.pipeline takes {len(inputs)} frames of a video: '
                f'expected clips of {frames}, the num_segments of the backbone'
            )
    for clip in inputs.split(frames):
        data = {'inputs': [clip], 'data_samples': [packed['data_samples']]}
        yield model.data_preprocessor(data, training=False)['inputs']  # type: ignore[operator]
