# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Make any CNN backbone dynamic, in place and without touching its forward."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmaction.registry import MODELS
from torch import Tensor, nn
from typing_extensions import Self

from ..checkpoints.loading import OWN_PARTS, OtherNetworkError, check_kind
from ..checkpoints.loading import is_own_parameter as is_own_parameter
from ..errors import given_options
from ..ops import DynamicConv2d, DynamicConv3d, collect, report_fixed
from ..ops.decision import (
    COLUMNS,
    ChargedDecision,
    Decisions,
    LayerDecision,
    charge_on_host,
    gradient_of_charge,
)
from ..ops.recompute import recomputing
from ..ops.unused import with_zero_gradients
from ..ops.watched import is_watched
from .blocks import checkpoint_without_reentry, derive
from .forms import channels_last, use_forms
from .kinds import Convolution, TransposedConvolution
from .layers import DynamicOptions, clip_length, make_layers_dynamic
from .wrapped import is_wrapper

DECISION_COLUMNS = (*COLUMNS, 'segment')
_ZEROS = (0.0,) * len(DECISION_COLUMNS)


def explain_to_stock_parts(pair: type) -> type:
    """Give a tuple an answer to torch functions, for stock necks and heads that call one on it."""

    def refuse(cls: type, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> None:
        raise TypeError(
            'the features and decisions of a dynamic backbone reached '
            f'{getattr(func, "__name__", func)}: the model needs '
            "neck=dict(type='SoftModulationGateNeck') and a VARED2 head"
        )

    pair.__torch_function__ = classmethod(refuse)  # type: ignore[attr-defined]
    return pair


@explain_to_stock_parts
class DynamicFeatures(NamedTuple):
    """What a dynamic backbone returns."""

    features: Any
    """Those of the stock backbone: a tensor or a tuple of tensors."""
    decisions: Tensor
    """(N, 1 + layers, 6) in float64, a row for each clip; from a 2-D backbone (N T, ...), a row
    for each frame, alike within a clip. Columns: ``DECISION_COLUMNS``. The first layer stands
    for all convolutions that are not dynamic; costs are multiply-adds a clip."""


class DynamicBackbone(nn.Module):
    """Mixin: a stock backbone that returns its decisions beside its features.

    Args:
        dynamic: Options of :class:`~vared2_mmaction.models.layers.DynamicOptions`.
    """

    dynamic_layers: tuple[str, ...]
    clip_length: int | None
    """Frames of a clip in a 2-D backbone; None in a 3-D one, whose input has a time axis."""
    _own: tuple[str, ...] = ()
    """Prefixes of the names of what stock backbones lack."""
    recompute: bool
    """Whether maps are made again in the backward pass; see :class:`DynamicOptions`."""
    _initialised_by: set[str] | None = None
    """What stock initialisation has loaded so far; it may load a part, or names it made up."""

    def __init__(self, *args: Any, dynamic: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._make_dynamic(DynamicOptions.parse(dynamic))

    def _make_dynamic(self, options: DynamicOptions) -> None:
        self.dynamic_layers = make_layers_dynamic(self, options)
        self.recompute = options.recompute
        layers = [self.get_submodule(name) for name in self.dynamic_layers]
        frames = any(isinstance(layer, DynamicConv2d) for layer in layers)
        self.clip_length = clip_length(self, options) if frames else None
        self._own = tuple(f'{name}.{part}.' for name in self.dynamic_layers for part in OWN_PARTS)
        use_forms(self)
        checkpoint_without_reentry(self)
        for module in self.modules():
            if isinstance(module, Convolution) and not isinstance(
                module, DynamicConv2d | DynamicConv3d
            ):
                module.register_forward_hook(report_convolution)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> DynamicFeatures:
        """Extract features; arguments are those of the stock backbone.

        Raises:
            ValueError: If a 2-D backbone gets something else than frames (N T, C, H, W) of whole
                clips.
        """
        if self.clip_length is not None and (x.dim() != 4 or len(x) % self.clip_length):
            raise ValueError(
                f'{type(self).__name__}: expected frames (N * {self.clip_length}, C, H, W) for its '
                f'convolutions in 2-D and num_segments={self.clip_length}, got {tuple(x.shape)}'
            )
        scope = recomputing() if self.recompute and torch.is_grad_enabled() else nullcontext()
        with collect() as decisions, scope:
            features = super().forward(channels_last(x), *args, **kwargs)
        return DynamicFeatures(features, self._tabulate(decisions, x))

    def train(self, mode: bool = True) -> Self:
        """Set the mode; gates and cheap operations learn whatever ``frozen_stages``, ``norm_eval``
        and other options of the stock backbone freeze."""
        own = [self.get_submodule(prefix[:-1]) for prefix in self._own]
        learns = [(p, p.requires_grad) for part in own for p in part.parameters()]
        super().train(mode)
        for parameter, before in learns:
            if parameter.requires_grad != before:
                parameter.requires_grad = before
        for part in own:
            part.train(mode)
        return self

    def _tabulate(self, decisions: Decisions, x: Tensor) -> Tensor:
        segments = self.clip_length or 1
        clips = x.shape[0] // segments
        reported = [(name, d) for name, many in decisions.layers.items() for d in many]
        if any(_stayed_on_device(d) for _, d in reported):
            table = self._stack(decisions, clips, x.device)
        else:
            rows = list(self._rows(decisions, clips))
            table = torch.tensor(rows, dtype=torch.float64, device=x.device)
            table = table.view(len(rows), clips, len(DECISION_COLUMNS)).transpose(0, 1).contiguous()
        free = [
            (name, d)
            for name, d in reported
            if isinstance(d, LayerDecision) and not d.answer.constant
        ]
        if free and torch.is_grad_enabled():
            of = [1 + self.dynamic_layers.index(name) for name, _ in free]
            gradient = F.pad(gradient_of_charge([d for _, d in free], x.device), (0, 1))
            table = table.index_add(1, torch.tensor(of, device=x.device), gradient)
        if self.training and torch.is_grad_enabled():
            # An option that is off for all clips leaves its cheap operation unused.
            table = with_zero_gradients(table, self._untrained(decisions))
        if self.clip_length is None:
            return table
        table = table.unsqueeze(1).repeat(1, segments, 1, 1)
        table[..., -1] = torch.arange(segments, device=x.device)[:, None]
        return table.flatten(0, 1)

    def _stack(self, decisions: Decisions, clips: int, device: torch.device) -> Tensor:
        """The same as :meth:`_rows`, of decisions that stayed on the device."""
        fixed = torch.zeros(clips, len(COLUMNS), dtype=torch.float64, device=device)
        fixed[:, :2] = decisions.fixed / max(clips, 1)
        tables = [fixed]
        for name in self.dynamic_layers:
            runs = [_charged(d, device) for d in decisions.layers.get(name, ())]
            tables.append(sum(runs[1:], runs[0]) if runs else torch.zeros_like(fixed))
        return F.pad(torch.stack(tables, 1), (0, 1))

    def _rows(self, decisions: Decisions, clips: int) -> Iterator[list[tuple[float, ...]]]:
        """Row of each clip, for what is not dynamic and for each layer."""
        fixed = decisions.fixed / max(clips, 1)
        yield [(fixed, fixed, *_ZEROS[2:])] * clips
        for name in self.dynamic_layers:
            runs = [charge_on_host(d) for d in decisions.layers.get(name, ())]
            # A layer that is run more than once has one row, the sum.
            summed = runs[0] if len(runs) == 1 else [_sum(clip) for clip in zip(*runs, strict=True)]
            yield [(*row, 0.0) for row in summed] or [_ZEROS] * clips

    def _untrained(self, decisions: Decisions) -> Iterator[nn.Parameter]:
        """Parameters of gates and cheap operations that may get no gradient from the layers."""
        runs = (run for many in decisions.layers.values() for run in many)
        trained = {m for run in runs if isinstance(run, LayerDecision) for m in run.trained}
        for name in self.dynamic_layers:
            layer: Any = self.get_submodule(name)
            if layer.gate not in trained:
                yield from layer.gate.parameters()
            for options in (layer.channel_options, layer.temporal_options):
                for operation in options.cheap:
                    if operation not in trained:
                        yield from (operation.weight, operation.bias)

    def init_weights(self, *args: Any, **kwargs: Any) -> None:
        """Initialise as the stock backbone does; gates and cheap operations keep their own."""
        own = {k: v.clone() for k, v in self.state_dict().items() if k.startswith(self._own)}
        given: set[str] = set()
        self._initialised_by = given
        try:
            if (stock := getattr(super(), 'init_weights', None)) is not None:
                stock(*args, **kwargs)
            kept = {k: v for k, v in own.items() if k not in given}
            self.load_state_dict(kept, strict=False)
        finally:
            self._initialised_by = None

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any
    ) -> None:
        given = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
        if self._initialised_by is None:
            self._check_checkpoint(given, prefix)
        else:
            self._initialised_by.update(given)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check_checkpoint(self, given: Mapping[str, Tensor], prefix: str) -> None:
        """Refuse the checkpoint of another network; MMEngine would only log what differs."""
        dynamic = any(key.startswith(self._own) for key in given)
        static = not dynamic or not all(key.startswith(self._own) for key in given)
        own = self.state_dict()
        for key, value in own.items():
            if key in given:
                check_kind(f'{prefix}{key}', value, given[key])
            wanted = dynamic if key.startswith(self._own) else static
            if not wanted or key.endswith('num_batches_tracked'):
                continue
            found = given.get(key)
            if found is None or found.shape != value.shape:
                what = 'nothing' if found is None else f'shape {tuple(found.shape)}'
                raise OtherNetworkError(
                    f'checkpoint of another network: expected {prefix}{key} of shape '
                    f'{tuple(value.shape)} for {type(self).__name__}, found {what}'
                )
        others = {key: value for key, value in given.items() if key not in own}
        unknown = [key for key, value in others.items() if getattr(value, 'ndim', 0) > 3]
        if unknown:  # a convolution, of a deeper network for example
            raise OtherNetworkError(
                f'checkpoint of another network: {prefix}{unknown[0]} is no parameter of '
                f'{type(self).__name__}'
            )


def dynamize(backbone: nn.Module, **dynamic: Any) -> nn.Module:
    """Make a CNN backbone dynamic, in place.

    All stock parameter names stay, so that a stock checkpoint loads with nothing but gates and
    cheap operations missing. The forward then returns :class:`DynamicFeatures`.

    Args:
        backbone: Any backbone built of ``nn.Conv2d`` or ``nn.Conv3d``.
        **dynamic: Options of :class:`~vared2_mmaction.models.layers.DynamicOptions`.

    Returns:
        The same object.

    Raises:
        ValueError: If an option is wrong, or the backbone has nothing to make dynamic.

    Examples:
        >>> from mmaction.registry import MODELS
        >>> from vared2_mmaction import dynamize
        >>> slow_only = MODELS.build(dict(type='ResNet3dSlowOnly', depth=50, lateral=False))
        >>> features, decisions = dynamize(slow_only, temporal=2)(clips)
    """
    if isinstance(backbone, DynamicBackbone):
        raise ValueError(f'{type(backbone).__name__} is dynamic already')
    if is_wrapper(backbone):
        raise ValueError(
            f'dynamize: expected a backbone, got {type(backbone).__name__}, which has taken its '
            'parameters already: wrap the dynamic network'
        )
    options = DynamicOptions.parse(dynamic)
    stock = type(backbone)
    backbone.__class__ = derive(DynamicBackbone, stock)
    try:
        backbone._make_dynamic(options)  # type: ignore[operator]
    except Exception:  # with other options it may work
        backbone.__class__ = stock
        raise
    return backbone


@MODELS.register_module(name='VARED2Backbone')
def build_dynamic_backbone(backbone: dict, dynamic: Mapping[str, Any] | None = None) -> nn.Module:
    """Any MMAction2 backbone, made dynamic from a config.

    Args:
        backbone: Config of the stock backbone.
        dynamic: Options of :class:`~vared2_mmaction.models.layers.DynamicOptions`.
    """
    return dynamize(MODELS.build(backbone), **given_options('dynamic', dynamic))


def _stayed_on_device(decision: LayerDecision | ChargedDecision) -> bool:
    return isinstance(decision, ChargedDecision) and isinstance(decision.charges, Tensor)


def _charged(decision: LayerDecision | ChargedDecision, device: torch.device) -> Tensor:
    if isinstance(decision, ChargedDecision) and isinstance(decision.charges, Tensor):
        return decision.charges
    return torch.tensor(charge_on_host(decision), dtype=torch.float64, device=device)


def _sum(rows: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    """Column by column."""
    return tuple(map(sum, zip(*rows, strict=True)))


def report_convolution(conv: nn.Module, args: Any, output: Tensor) -> None:
    """Forward hook of the convolutions that are not dynamic, whose cost is fixed."""
    shape: Any = conv.weight.shape
    each = args[0] if isinstance(conv, TransposedConvolution) else output  # meets so many weights
    report_fixed(each.numel() * math.prod(shape[1:]))


def is_watched_by_others(module: nn.Module) -> bool:
    """Whether a call of a module does more than its class says, besides reporting its cost."""
    return is_watched(module, but=report_convolution)
