# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Where a recognizer's multiply-adds go: static, decided and executed, stage by stage.

*Static* is the stock network, *expected* what the decisions of the layers say, *executed* what
``torch.utils.flop_counter`` saw while a clip ran through the network, without gates and cheap
operations. In evaluation expected and executed are equal, layer by layer, or an error is raised.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from ..models.dynamize import DynamicBackbone, DynamicFeatures, is_own_parameter
from ..models.static import to_static

_RESIDUAL_STAGE = re.compile(r'((?P<pathway>.+?)\.)?(?P<stage>layer\d+)(?=[._]|$)')


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

    def render(self) -> Table:
        """The table to print; costs in GMACs."""
        digits = 3 if self.total.static >= 1e9 else 6
        table = Table(title='GMACs a clip', caption_justify='left')
        table.add_column('stage')
        for name in ('parameters', 'static', 'expected', 'executed', 'overhead'):
            table.add_column(name, justify='right', no_wrap=True)
        for row in (*self.rows, self.total):
            if row is self.total:
                table.add_section()
            static, executed, overhead, expected, least, most = (
                f'{macs / 1e9:.{digits}f}'
                for macs in (
                    *(row.static, row.executed, row.overhead),
                    *(row.expected, row.expected_min, row.expected_max),
                )
            )
            if self.videos > 1:
                expected = f'{expected} ({least}–{most})'
            parameters = f'{row.parameters:,}'
            table.add_row(row.stage, parameters, static, expected, executed, overhead)
        return table


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
