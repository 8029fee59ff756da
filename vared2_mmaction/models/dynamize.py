# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Make any CNN backbone dynamic, in place and without touching its forward."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmaction.registry import MODELS
from torch import Tensor, nn
from typing_extensions import Self

from ..checkpoints.loading import NO_WEIGHTS, OWN_PARTS, OtherNetworkError, check_kind
from ..errors import given_options
from ..ops import COLUMNS, Decision, DynamicConv2d, DynamicConv3d, SoftModulationGate, charge
from ..ops.options import MAX_OPTIONS
from ..watched import is_watched
from .blocks import checkpoint_without_reentry, derive
from .forms import channels_last, use_forms
from .kinds import Convolution, TransposedConvolution
from .layers import DynamicOptions, clip_length, make_layers_dynamic
from .wrapped import is_wrapper


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
    """(N, 1 + layers, 5 + 1) in float64, a row for each clip; from a 2-D backbone
    (N T, 1 + layers, 5 + T), a row for each frame. Columns: those of
    ``vared2_mmaction.ops.COLUMNS``, then one for each frame of a clip, which says with a one
    what frame the row is of. The first layer stands for all convolutions that are not dynamic;
    costs are multiply-adds a clip."""


class DynamicBackbone(nn.Module):
    """Mixin: a stock backbone that returns its decisions beside its features.

    Args:
        dynamic: Options of :class:`~vared2_mmaction.models.layers.DynamicOptions`.
    """

    dynamic_layers: tuple[str, ...]
    fixed_layers: tuple[str, ...]
    """Names of the convolutions that are not dynamic."""
    clip_length: int | None
    """Frames of a clip in a 2-D backbone; None in a 3-D one, whose input has a time axis."""
    option_counts: Tensor | None = None
    """For how many training clips each option in use of each layer was on, dearest first, and then
    how many clips there were, if somebody has set it to count: (layers, 2, ``MAX_OPTIONS`` + 1).
    What a layer has no option for, because few are in use or clips are short, counts as on."""
    _own: tuple[str, ...] = ()
    """Prefixes of the names of what stock backbones lack."""
    _initialised_by: set[str] | None = None
    """What stock initialisation has loaded so far; it may load a part, or names it made up."""

    def __init__(self, *args: Any, dynamic: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._make_dynamic(DynamicOptions.parse(dynamic))

    def _make_dynamic(self, options: DynamicOptions) -> None:
        self.dynamic_layers = make_layers_dynamic(self, options)
        layers = [self.get_submodule(name) for name in self.dynamic_layers]
        frames = any(isinstance(layer, DynamicConv2d) for layer in layers)
        self.clip_length = clip_length(self, options) if frames else None
        self._own = _names_of_parts(self.dynamic_layers)
        use_forms(self)
        checkpoint_without_reentry(self)
        fixed: dict[str, Any] = {
            name: module
            for name, module in self.named_modules()
            if isinstance(module, Convolution)
            and not isinstance(module, DynamicConv2d | DynamicConv3d)
        }
        self.fixed_layers = tuple(fixed)
        for module in fixed.values():
            module.macs = None
            module.register_forward_hook(report_convolution)
        self.find_layers()

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
        layers, fixed = self._charged
        _collect(layers, 'decisions', ())
        _collect(fixed, 'macs', 0)
        try:
            features = super().forward(channels_last(x), *args, **kwargs)
            return DynamicFeatures(features, self._tabulate(layers, fixed, x))
        finally:
            _collect(layers, 'decisions', None)
            _collect(fixed, 'macs', None)

    def find_layers(self) -> None:
        """Look for the convolutions by their names again, after they were swapped for others."""
        self._charged: tuple[list[Any], list[Any]] = (
            [self.get_submodule(name) for name in self.dynamic_layers],
            [self.get_submodule(name) for name in self.fixed_layers],
        )

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

    def _tabulate(self, layers: list[Any], fixed: list[Any], x: Tensor) -> Tensor:
        """Take from layers what they decided, and charge it."""
        frames = self.clip_length or 1
        clips = len(x) // frames
        decided = [layer.decisions for layer in layers]
        for name, runs in zip(self.dynamic_layers, decided, strict=True):
            for run in runs:
                if isinstance(run, Decision) and (inputs := len(run.weights[0])) != clips:
                    raise ValueError(
                        f'{name}: expected an input a clip, got {inputs} of {clips} clips; '
                        'dynamic.layers may leave it out'
                    )
        macs = sum(conv.macs for conv in fixed)
        first = x.new_full((clips, 1, 2), macs / max(clips, 1), dtype=torch.float64)
        rows = _charge_all(decided, F.pad(first, (0, len(COLUMNS) - 2)))
        if self.training and self.option_counts is not None:
            self._count_options(decided)
        if self.training and torch.is_grad_enabled() and (idle := _idle(layers, decided)):
            # DistributedDataParallel waits for a gradient of every parameter in every step.
            rows = rows + 0 * torch.cat([p.flatten() for p in idle]).sum()
        if frames == 1:
            return F.pad(rows, (0, 1), value=1.0)
        segment = torch.eye(frames, dtype=rows.dtype, device=rows.device)
        rows = rows[:, None].expand(-1, frames, -1, -1)
        segment = segment[None, :, None].expand(clips, -1, rows.shape[2], -1)
        return torch.cat((rows, segment), -1).flatten(0, 1)

    def _count_options(self, decided: list[tuple]) -> None:
        layers, rows = [], []
        for i, runs in enumerate(decided):
            for run in runs:
                if isinstance(run, Decision):
                    layers.append(i)
                    for v in run.weights:
                        missing = MAX_OPTIONS + 1 - v.shape[1]
                        rows.append(F.pad(v > 0, (0, missing), value=True))
        counts = torch.stack(rows).sum(1).unflatten(0, (-1, 2))
        assert self.option_counts is not None
        if layers == list(range(len(self.dynamic_layers))):
            self.option_counts += counts
        else:
            for i, own in zip(layers, counts, strict=True):  # a list would be copied to a GPU
                self.option_counts[i] += own

    def init_weights(self, *args: Any, **kwargs: Any) -> None:
        """Initialise as the stock backbone does; gates and cheap operations keep their own."""
        own = {k: v.clone() for k, v in self.state_dict().items() if k.startswith(self._own)}
        given: set[str] = set()
        self._initialised_by = given
        try:
            if (stock := getattr(super(), 'init_weights', None)) is not None:
                stock(*args, **kwargs)
        finally:
            self._initialised_by = None
        with torch.no_grad():
            for key, value in self.state_dict().items():
                if key in own and key not in given:
                    value.copy_(own[key])

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any
    ) -> None:
        given = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
        left_out = _names_of_parts(self.fixed_layers)
        if foreign := next((key for key in given if key.startswith(left_out)), None):
            raise OtherNetworkError(
                f'checkpoint of another network: {prefix}{foreign} is of a layer that '
                'dynamic.layers leaves out'
            )
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
            if not wanted or key.endswith(NO_WEIGHTS):
                continue
            found = given.get(key)
            if found is None or found.shape != value.shape:
                what = 'nothing' if found is None else f'shape {tuple(found.shape)}'
                raise OtherNetworkError(
                    f'checkpoint of another network: expected {prefix}{key} of shape '
                    f'{tuple(value.shape)} for {type(self).__name__}, found {what}'
                )
        for key, value in given.items():
            if key not in own and getattr(value, 'ndim', 0) > 3:  # a convolution, of a deeper one
                raise OtherNetworkError(
                    f'checkpoint of another network: {prefix}{key} is no parameter of '
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


def _collect(modules: Iterable[nn.Module], name: str, value: Any) -> None:
    for module in modules:
        module.__dict__[name] = value  # a module looks among its parameters first, for long


def _names_of_parts(layers: Iterable[str]) -> tuple[str, ...]:
    """Prefixes of the names of what dynamic layers have beside their convolutions."""
    return tuple(f'{layer}.{part}.' for layer in layers for part in OWN_PARTS)


def _charge_all(decided: list[tuple], first: Tensor) -> Tensor:
    """What layers are charged, (N, 1 + layers, 5): the sum of their runs, and the dearest options
    of these.

    Runs are decisions, or what executors have charged already, (N, 5) each. ``first``, (N, 1, 5),
    is the row of what is not dynamic.
    """
    if all(len(runs) == 1 and isinstance(runs[0], Decision) for runs in decided):
        return torch.cat((first, charge([run for (run,) in decided])), 1)
    decisions = [run for runs in decided for run in runs if isinstance(run, Decision)]
    charges = iter(charge(decisions).unbind(1) if decisions else ())
    rows = [*first.unbind(1)]
    for runs in decided:
        charged = [next(charges) if isinstance(run, Decision) else run for run in runs]
        rows.append(_all_runs(torch.stack(charged)) if charged else torch.zeros_like(rows[0]))
    return torch.stack(rows, 1)


def _all_runs(runs: Tensor) -> Tensor:
    """One row, (N, 5), of those of several runs of a layer, (runs, N, 5)."""
    costs = COLUMNS.index('p_c')
    return torch.cat((runs[..., :costs].sum(0), runs[..., costs:].amin(0)), -1)


def _idle(layers: list[Any], decided: list[tuple]) -> list[nn.Parameter]:
    """Parameters of dynamic layers that wait for a gradient, and may get none."""
    return [
        parameter
        for layer, runs in zip(layers, decided, strict=True)
        if isinstance(layer, (DynamicConv2d, DynamicConv3d))
        for parameter in _idle_parameters(layer, runs)
        if parameter.requires_grad
    ]


def _idle_parameters(layer: Any, runs: Iterable[Decision]) -> Iterator[nn.Parameter]:
    """Parameters of a layer's own parts to which its runs may give no gradient."""
    learning = [run for run in runs if any(v.requires_grad for v in run.weights)]
    # Of a gate of another class only its forward is known, not what that needs.
    if not learning or type(layer.gate) is not SoftModulationGate:
        yield from layer.gate.parameters()
    for d, part in enumerate((layer.channel_options, layer.temporal_options)):
        mixed = {option for run in learning for option in run.cost.options[d]}
        for option, operation in enumerate(part.cheap, 1):
            if option not in mixed:
                yield from operation.parameters()


def report_convolution(conv: Any, args: Any, output: Tensor) -> None:
    """Forward hook of the convolutions that are not dynamic, whose cost is fixed."""
    if conv.macs is not None:
        # Every element of these meets so many weights.
        each = args[0] if isinstance(conv, TransposedConvolution) else output
        conv.macs += each.numel() * math.prod(conv.weight.shape[1:])


def is_watched_by_others(module: nn.Module) -> bool:
    """Whether a call of a module does more than its class says, besides reporting its cost."""
    return is_watched(module, but=report_convolution)
