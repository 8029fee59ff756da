# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Find the mistakes of a config before anything is built or trained."""

import inspect
import os
from typing import Any

from mmaction.registry import MODELS
from mmaction.utils import register_all_modules
from mmengine.config import Config

from ..installation import DETECTION_MISSING, has_detection
from ..models.dynamize import DynamicBackbone, build_dynamic_backbone
from ..models.heads import BudgetPart, build_budget_head
from ..models.layers import DynamicOptions
from ..models.neck import SoftModulationGateNeck

_MOST_FILES_LOOKED_FOR = 20_000


def check_config(cfg: Config, *splits: str) -> None:
    """Check model, checkpoint and data of a config.

    Args:
        cfg: The config.
        *splits: Whose data to check: 'train', 'val', 'test'.

    Raises:
        ValueError: If backbone, neck and head do not belong together, or a dynamic option is wrong.
        FileNotFoundError: If a checkpoint, an annotation file or a video is missing.
    """
    register_all_modules(init_default_scope=False)
    _check_model(cfg.model)
    _check_checkpoint(cfg.get('load_from'))
    for split in splits:
        if (loader := cfg.get(f'{split}_dataloader')) is not None:
            _check_data(loader.dataset, f'{split}_dataloader.dataset')


def _check_model(model: dict) -> None:
    backbone, neck = model.get('backbone'), model.get('neck')
    if not backbone:
        return
    detection = 'roi_head' in model
    if detection and not has_detection():
        raise ValueError(f'model.type={model["type"]!r}: {DETECTION_MISSING}')
    dynamic = _is(backbone, DynamicBackbone) or _class(backbone) is build_dynamic_backbone
    has_neck = neck is not None and _is(neck, SoftModulationGateNeck)
    if dynamic:
        DynamicOptions.parse(dict(backbone.get('dynamic') or {}))
    if dynamic and not has_neck:
        name = 'mmaction.SoftModulationGateNeck' if detection else 'SoftModulationGateNeck'
        raise ValueError(
            f'model.neck: backbone {backbone["type"]} is dynamic and needs '
            f'neck=dict(type={name!r}), got {neck}'
        )
    if has_neck and not dynamic:
        raise ValueError(
            f'model.backbone: SoftModulationGateNeck needs a dynamic backbone (VARED2...), got '
            f'{backbone["type"]}'
        )
    key, known = 'cls_head', 'VARED2TSNHead, VARED2I3DHead, VARED2X3DHead or VARED2Head'
    if detection:
        key, known = 'roi_head', 'VARED2AVARoIHead'
    head = model.get(key)
    if dynamic and not (head and _has_budget(head, model.get('_scope_'))):
        found = head and head['type']
        raise ValueError(f'model.{key}: a dynamic backbone needs {known}, got {found}')


def _has_budget(head: dict, scope: str | None) -> bool:
    return _class(head, scope) is build_budget_head or _is(head, BudgetPart, scope)


def _class(config: dict, scope: str | None = None) -> Any:
    kind = config['type']
    if scope and isinstance(kind, str) and '.' not in kind:
        kind = f'{scope}.{kind}'
    found = MODELS.get(kind) if isinstance(kind, str) else kind
    if found is None:
        raise ValueError(f'model: {kind!r} is not registered; is custom_imports missing a module?')
    return found


def _is(config: dict, base: type, scope: str | None = None) -> bool:
    found = _class(config, scope)
    return inspect.isclass(found) and issubclass(found, base)


def _check_checkpoint(path: str | None) -> None:
    if path is not None and '://' not in path and not os.path.exists(path):
        raise FileNotFoundError(
            f'load_from={path!r}: no such checkpoint; train the network it is from first, or name '
            'another with --cfg-options load_from=FILE'
        )


def _check_data(dataset: dict, key: str) -> None:
    """Look whether what a video data set names is there."""
    if dataset['type'] != 'VideoDataset' or not isinstance(dataset.get('ann_file'), str):
        return
    ann_file = dataset['ann_file']
    if not os.path.isfile(ann_file):
        raise FileNotFoundError(f'{key}.ann_file={ann_file!r}: no such annotation file')
    root = (dataset.get('data_prefix') or {}).get('video', '')
    delimiter = dataset.get('delimiter', ' ')
    with open(ann_file) as file:
        names = [line.strip().split(delimiter)[0] for line in file if line.strip()]
    if not names:
        raise ValueError(f'{key}.ann_file={ann_file!r}: expected lines "video label", found none')
    # Asking a file server for millions of files takes longer than the first epoch's first error.
    step = -(-len(names) // _MOST_FILES_LOOKED_FOR)
    missing = [n for n in names[::step] if not os.path.isfile(os.path.join(root, n))]
    if missing:
        raise FileNotFoundError(
            f'{key}: {len(missing)} of {len(names[::step])} videos looked for are missing, first '
            f'{os.path.join(root, missing[0])!r}; expected the videos of {ann_file!r} under '
            f'data_prefix.video={root!r}'
        )
