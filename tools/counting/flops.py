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
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from mmaction.models.recognizers import Recognizer2D
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from vared2_mmaction.checkpoints.loading import is_own_parameter
from vared2_mmaction.executors import ExecutedConv
from vared2_mmaction.models import DynamicFeatures, dynamic_layers, to_static
from vared2_mmaction.models.dynamize import DynamicBackbone
from vared2_mmaction.models.kinds import Convolution
from vared2_mmaction.models.static import run_once

_RESIDUAL_STAGE = re.compile(r'((?P<pathway>.+?)\.)?layer\d+(?=[._]|$)')


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
