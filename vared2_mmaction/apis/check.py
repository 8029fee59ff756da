# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Find the mistakes of a config before its network is built."""

import inspect
import os
from typing import Any

from mmaction.models.heads import FeatureHead
from mmaction.registry import MODELS
from mmaction.utils import register_all_modules
from mmengine.config import Config

from ..installation import DETECTION_MISSING, has_detection
from ..models.dynamize import DynamicBackbone, build_dynamic_backbone
from ..models.heads import BudgetPart, build_budget_head
from ..models.layers import DynamicOptions
from ..models.neck import SoftModulationGateNeck

_BUILT_ELSEWHERE = ('mmcls.', 'mmpretrain.', 'torchvision.', 'timm.')
"""Packages that a recognizer may take a backbone from, without a registry."""


def check_config(cfg: Config) -> None:
    """Check model and checkpoint of a config.

    Raises:
        ValueError: If backbone, neck and head do not belong together, or a dynamic option is wrong.
        FileNotFoundError: If a checkpoint is missing.
    """
    register_all_modules(init_default_scope=False)
    if not isinstance(cfg.get('model'), dict):
        raise ValueError(f'model={cfg.get("model")!r}: expected the config of a network')
    _check_model(cfg.model)
    _check_checkpoint(cfg.get('load_from'))


def num_classes(cfg: Config) -> int | None:
    """Classes of a recognizer's head, within another head or not; None where they are not told."""
    head = innermost_head(cfg.get('model', {}))
    return head.get('num_classes') if isinstance(head, dict) else None


def innermost_head(model: dict) -> Any:
    """The config of a recognizer's head, or of the one within it."""
    head = model.get('cls_head')
    while isinstance(head, dict) and isinstance(head.get('head'), dict):
        head = head['head']
    return head


def has_gate_neck(model: dict) -> bool:
    """Whether the neck of a model's config charges decisions of gates."""
    neck = model.get('neck')
    return neck is not None and _is(neck, SoftModulationGateNeck)


def _check_model(model: dict) -> None:
    backbone, neck = model.get('backbone'), model.get('neck')
    if not isinstance(backbone, dict):
        return
    if str(backbone.get('type')).startswith(_BUILT_ELSEWHERE):
        return
    detection = 'roi_head' in model
    if detection and not has_detection():
        raise ValueError(f'model.type={model.get("type")!r}: {DETECTION_MISSING}')
    dynamic = _is(backbone, DynamicBackbone) or class_of(backbone) is build_dynamic_backbone
    has_neck = has_gate_neck(model)
    if dynamic:
        DynamicOptions.parse(backbone.get('dynamic'))
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
    # Feature extraction takes any features, and has no loss.
    found = class_of(head, scope)
    return found is build_budget_head or _is(head, BudgetPart, scope) or found is FeatureHead


def class_of(config: dict, scope: str | None = None) -> Any:
    """The class, or function, that builds a part of a model; a ValueError if there is none."""
    if not isinstance(config, dict) or 'type' not in config:
        raise ValueError(f'model: expected the config of a part, dict(type=...), got {config!r}')
    kind = config['type']
    if scope and isinstance(kind, str) and '.' not in kind:
        kind = f'{scope}.{kind}'
    found = MODELS.get(kind) if isinstance(kind, str) else kind
    if found is None:
        raise ValueError(f'model: {kind!r} is not registered; is custom_imports missing a module?')
    return found


def _is(config: dict, base: type, scope: str | None = None) -> bool:
    found = class_of(config, scope)
    return inspect.isclass(found) and issubclass(found, base)


def _check_checkpoint(path: str | None) -> None:
    if path is not None and '://' not in path and not os.path.exists(os.path.expanduser(path)):
        raise FileNotFoundError(
            f'load_from={path!r}: no such checkpoint; train the network it is from first, or name '
            'another with --cfg-options load_from=FILE'
        )
