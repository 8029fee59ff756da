# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""The study: which networks are compared, and the config of every training run.

A run is a variant and a seed. All start from the configs of ``configs/study``; dynamic variants
start from the static network of their seed, and those that are compared at equal compute need to
know what VA-RED2 of their seed took.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config

import vared2_mmaction
from synthetic.moving_shapes import VERSION, MovingShapes

from .budgets import BUDGETS
from .fixed import fix_options
from .footage import Footage

STATIC, DYNAMIC = 'static', 'vared2'
"""The variants that others build on."""
RECIPE = 'pruned'
"""The variant that the project's recipes train."""
CONFIGS = {STATIC: 'static_r2plus1d.py', DYNAMIC: 'vared2_r2plus1d.py'}
_DYNAMIC = 'model.backbone.dynamic'
_GATE = f'{_DYNAMIC}.gate'
_EPOCHS = ('begin', 'end', 'ramp', 'fall')
"""Keys of schedulers and of this project's hooks that are epochs."""
_BUDGET = 'model.cls_head.loss_budget.budget'
_FIXED = {
    'custom_hooks': [
        dict(type='BudgetScheduleHook', fall=3),
        dict(type='FixOptionsHook', begin=3),
    ]
}
PRUNED = {f'{RECIPE}_{100 * budget:.0f}': budget for budget in BUDGETS}
"""Variants that are trained to other budgets."""


@dataclass(frozen=True)
class Variant:
    """A kind of network.

    Attributes:
        about: What it is, for the report.
        base: Which of ``CONFIGS`` it changes.
        needs: The variant of the same seed that has to be finished first.
        options: Keys of the config that are replaced.
        loss_weight: Factor on the weight of the budget loss.
        equal_compute: What is set so that it takes the compute of VA-RED2: 'thrift' of the random
            policy, 'width' of the static network, the 'options' that are left, or nothing.
        both_phases: Whether a static network is trained for as many epochs as the dynamic one and
            the static one it starts from have together.
    """

    about: str
    base: str = DYNAMIC
    needs: str | None = STATIC
    options: Mapping[str, Any] = field(default_factory=dict)
    loss_weight: float = 1.0
    equal_compute: str | None = None
    both_phases: bool = False


VARIANTS: dict[str, Variant] = {
    STATIC: Variant('the static network, from scratch', base=STATIC, needs=None),
    DYNAMIC: Variant('VA-RED², from the static network'),
    'channel': Variant(
        'channels only, which start as frames do otherwise',
        options={f'{_DYNAMIC}.temporal': 1, f'{_GATE}.initial': {'channel': (0.2, 0.1)}},
    ),
    'temporal': Variant('time only', options={f'{_DYNAMIC}.channel': 1}),
    'random': Variant(
        'a random policy for every clip and layer, at the compute of VA-RED²',
        needs=DYNAMIC,
        equal_compute='thrift',
    ),
    'fixed': Variant(
        'options that suffice for about half of the training clips, the same for every clip',
        needs=DYNAMIC,
        equal_compute='options',
    ),
    RECIPE: Variant(
        'the same options for every clip from the end of the fall on, which the gates chose until '
        'then (FixOptionsHook), in one training',
        options=_FIXED,
    ),
    **{
        name: Variant(f'pruned, with a budget of {budget:g}', options={**_FIXED, _BUDGET: budget})
        for name, budget in PRUNED.items()
    },
    'slimmed': Variant(
        'the static network with fewer channels everywhere, at the compute of VA-RED²',
        base=STATIC,
        needs=DYNAMIC,
        equal_compute='width',
        both_phases=True,
    ),
    'no_motion': Variant(
        'gates without motion',
        options={f'{_GATE}.motion': False, f'{_GATE}.motion_slope': 0.0},
    ),
    'dear_dominant': Variant(
        'gates of both dimensions start with the dearest option dominant',
        # With the slope that the lower starts allow.
        options={f'{_GATE}.initial': (0.9, 0.067, 0.033), f'{_GATE}.motion_slope': 0.05},
    ),
    'lambda_low': Variant('a tenth of the weight of the budget loss', loss_weight=0.1),
    'longer': Variant(
        'the static network, trained for as many epochs as both phases have',
        base=STATIC,
        needs=None,
        both_phases=True,
    ),
}


@dataclass(frozen=True)
class Scale:
    """How large the study is.

    Attributes:
        videos: The video set.
        options: Keys of both configs that are replaced.
    """

    videos: MovingShapes
    options: Mapping[str, Any] = field(default_factory=dict)


SCALES: dict[str, Scale] = {
    # Other videos than those by which the settings of the configs were chosen (seeds 2, 3, 13, 14).
    'small': Scale(MovingShapes(train=2500, val=14, test=2000, frames=32, seed=5)),
    # Clips that differ in how many of their frames are needed.
    'speeds': Scale(MovingShapes(train=2500, val=14, test=2000, frames=32, seed=6, repeats=5.0)),
    # R(2+1)D-18 of half its width on ten times the training videos: hours on a GPU.
    'large': Scale(
        MovingShapes(train=25000, val=14, test=5600, frames=32, seed=5),
        {
            'model.backbone.stage_blocks': (2, 2, 2, 2),
            'model.backbone.base_channels': 32,
            'model.cls_head.in_channels': 256,
        },
    ),
}


class Run(NamedTuple):
    """One training run of the study."""

    variant: str
    seed: int

    def __str__(self) -> str:
        return f'{self.variant}_seed{self.seed}'

    @property
    def needs(self) -> 'Run | None':
        """The run whose result this one needs."""
        needed = VARIANTS[self.variant].needs
        return None if needed is None else Run(needed, self.seed)


@dataclass(frozen=True)
class Study:
    """What decides the results.

    Attributes:
        configs: Folder of ``CONFIGS``.
        videos: The video set.
        options: Keys of both configs that are replaced.
        seeds: Seeds of the training runs.
        variants: Keys of ``VARIANTS``.
        epochs: Epochs of the static and of the dynamic phase; None takes those of the configs.
        budget: Of dynamic networks whose variant has none of its own; None takes that of the
            configs.

    Raises:
        ValueError: An argument is out of range; the message names it as the command line does.
    """

    configs: Path
    videos: MovingShapes | Footage
    options: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    variants: tuple[str, ...] = tuple(VARIANTS)
    epochs: tuple[int, int] | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        for name in self.variants:
            if name not in VARIANTS:
                raise ValueError(
                    f'--variants: expected names out of {list(VARIANTS)}, got {name!r}'
                )
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f'--seeds: expected different numbers from 0, got {self.seeds}')
        if self.epochs is not None and min(self.epochs) < 2:
            raise ValueError(f'--epochs: expected at least 2 each, got {self.epochs}')
        if self.budget is not None and not 0 < self.budget < 1:
            raise ValueError(f'--budget: expected a share between 0 and 1, got {self.budget}')

    def runs(self) -> list[Run]:
        """All runs, with those that others need, in an order in which they can be done."""
        wanted = {Run(name, seed) for name in self.variants for seed in self.seeds}
        for run in list(wanted):
            while (run := run.needs) is not None:  # type: ignore[assignment]
                wanted.add(run)
        order = list(VARIANTS)
        return sorted(wanted, key=lambda run: (order.index(run.variant), run.seed))

    def config(self, run: Run, equal_compute: Any = None) -> Config:
        """The config of a run, without its folder, its data and the weights it starts from.

        Args:
            run: The run.
            equal_compute: Thrift, width or options for variants that have one, None for others.
        """
        variant = VARIANTS[run.variant]
        cfg = self._base_config(variant)
        if self.budget is not None and variant.base == DYNAMIC:
            cfg.merge_from_dict({_BUDGET: self.budget})
        cfg.merge_from_dict(dict(variant.options))
        if self.epochs is not None:
            set_epochs(cfg, self._epochs(variant.base))  # of the variant's hooks as well
        if variant.loss_weight != 1:
            _scale_budget_loss(cfg, variant.loss_weight)
        if variant.equal_compute == 'thrift':
            cfg.custom_imports.imports.append('studies.random_gate')
            cfg.model.backbone.type = 'RandomPolicyResNet2Plus1d'
            cfg.model.backbone.dynamic.gate = dict(type='RandomPolicyGate', thrift=equal_compute)
            # Gates that learn nothing cannot be brought to a budget: thrift is their compute.
            cfg.custom_hooks = [h for h in cfg.custom_hooks if h.type != 'FreezeGatesHook']
        if variant.equal_compute == 'width':
            set_width(cfg, int(equal_compute))
        if variant.equal_compute == 'options':
            fix_options(cfg, equal_compute)
        if variant.both_phases:
            set_epochs(cfg, cfg.train_cfg.max_epochs + self._epochs(DYNAMIC))
        cfg.randomness = dict(seed=run.seed)
        set_data(cfg, 'DATA', 1)
        _keep_the_last_checkpoints(cfg)
        return cfg

    def settings(self, run: Run, cfg: Config, start: str | None) -> dict[str, Any]:
        """All that a result depends on, by name; two runs of equal settings are the same.

        That is what the run does, its data and its seed, and by which versions of PyTorch and of
        this package. Code is told apart by its version alone, so that a finished run stays valid
        when code changes that it does not depend on.

        Args:
            run: The run.
            cfg: What :meth:`config` returned.
            start: Hash of the weights the run starts from.
        """
        config = {
            f'config.{key}': value
            for key, value in flatten(cfg.to_dict()).items()
            if key.split('.')[-1] not in ('num_workers', 'persistent_workers', 'work_dir')
            and key != 'load_from'
        }
        if isinstance(self.videos, Footage):
            facts = self.videos.settings()
        else:
            facts = {'version': VERSION, **asdict(self.videos)}
        videos = {f'videos.{key}': value for key, value in flatten(facts).items()}
        return {
            'variant': run.variant,
            'seed': run.seed,
            'start': start,
            'version.torch': str(torch.__version__),
            'version.vared2_mmaction': vared2_mmaction.__version__,
            **videos,
            **config,
        }

    def _base_config(self, variant: Variant) -> Config:
        cfg = Config.fromfile(self.configs / CONFIGS[variant.base])
        cfg.merge_from_dict(dict(self.options))
        if isinstance(self.videos, Footage):
            self.videos.configure(cfg)
        return cfg

    def _epochs(self, base: str) -> int:
        if self.epochs is not None:
            return self.epochs[base != STATIC]
        return Config.fromfile(self.configs / CONFIGS[base]).train_cfg.max_epochs


def set_epochs(cfg: Config, epochs: int) -> None:
    """Train for another number of epochs; schedules and hooks keep their shares of the training,
    but a warm-up lasts an epoch at least."""
    stretch = epochs / cfg.train_cfg.max_epochs
    cfg.train_cfg.max_epochs = epochs
    for part in (*cfg.param_scheduler, *cfg.get('custom_hooks', ())):
        for key in _EPOCHS:
            if key in part and part.get('by_epoch', True):
                part[key] = max(part[key] * stretch, min(part[key], 1))


def set_width(cfg: Config, width: int) -> None:
    """Give all stages of a static network another width.

    Raises:
        ValueError: If the head's input channels are no multiple of the old width.
    """
    old, features = cfg.model.backbone.base_channels, cfg.model.cls_head.in_channels
    if features % old:
        raise ValueError(
            f'model.cls_head.in_channels={features}: expected a multiple of '
            f'model.backbone.base_channels={old}'
        )
    cfg.model.backbone.base_channels = width
    cfg.model.cls_head.in_channels = features // old * width


def flatten(value: Any, prefix: str = '') -> dict[str, Any]:
    """Nested dictionaries and lists as one dictionary of dotted names, for JSON."""
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)  # type: ignore[assignment]
    else:
        plain = value is None or isinstance(value, bool | int | float | str)
        plain = plain and not (isinstance(value, float) and not math.isfinite(value))
        return {prefix: value if plain else str(value)}
    flat: dict[str, Any] = {} if value else {prefix: str(value)}
    for key, inner in items:
        flat |= flatten(inner, f'{prefix}.{key}' if prefix else str(key))
    return flat


def _scale_budget_loss(cfg: Config, factor: float) -> None:
    loss = cfg.model.cls_head.get('loss_budget') or {}
    if 'loss_weight' not in loss:
        raise ValueError(
            f'model.cls_head.loss_budget={loss}: expected a loss_weight, which this variant scales'
        )
    loss['loss_weight'] *= factor


def set_data(cfg: Config, data: str, workers: int) -> None:
    """Train and test on a video set.

    Args:
        cfg: The config, changed in place.
        data: Folder of the video set.
        workers: Processes that decode videos.
    """
    inside = Path(data) / 'videos'
    prefix = str(inside) if inside.is_dir() else data
    for split in ('train', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.dataset.ann_file = f'{data}/{split}.txt'
        loader.dataset.data_prefix = dict(video=prefix)
        loader.num_workers = workers
        loader.persistent_workers = workers > 0
    cfg.data_root = data


def _keep_the_last_checkpoints(cfg: Config) -> None:
    """No validation, by which nothing is chosen; two checkpoints, because a process that is
    killed while it writes one can go on from the other."""
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint.update(interval=1, max_keep_ckpts=2, save_best=None)
