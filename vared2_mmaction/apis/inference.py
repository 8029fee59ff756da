# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Classify one video through MMAction2's inferencer, and see what every layer decided."""

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmaction.apis.inferencers import ActionRecogInferencer, MMAction2Inferencer
from mmaction.structures import ActionDataSample
from mmengine.config import Config
from mmengine.logging import print_log
from torch import Tensor, nn

from ..datasets.pipelines import first_dataset, pipeline_steps
from ..models.dynamize import DynamicBackbone
from .check import check_config, num_classes
from .config_file import first_line, read_config_file
from .labels import read_classes
from .optimizing import optimize_and_log
from .weights import load_weights


@dataclass(frozen=True)
class Computation:
    """What a network saw of a video, and what that took.

    Costs are billions of multiply-adds (GMACs) a view, means over views.
    """

    compute_ratio: float
    """Executed over static multiply-adds of the backbone's convolutions, in (0, 1]."""
    compute_gmacs: float
    """What the backbone's convolutions executed."""
    overhead_gmacs: float
    """What gates and cheap operations took on top."""
    layers: tuple[str, ...]
    """Names of the dynamic layers in the backbone."""
    policy: Tensor
    """(views, layers, 2): options p_c and p_t of each layer."""
    frames: Tensor
    """(views, T, H, W, 3), uint8 RGB: what the network saw."""

    @property
    def static_gmacs(self) -> float:
        """What the convolutions of the static backbone take."""
        return self.compute_gmacs / self.compute_ratio


@dataclass(frozen=True)
class Recognition(Computation):
    """What a recognizer answered for a video, and what that took."""

    labels: tuple[str, ...]
    """All classes, best first; their numbers where there are no names."""
    scores: tuple[float, ...]
    """Their scores: probabilities where the head has ``average_clips='prob'``."""


def load_inferencer(
    config: str | os.PathLike,
    checkpoint: str | os.PathLike,
    device: str | None = None,
    label_file: str | None = None,
    optimized: bool = True,
) -> ActionRecogInferencer:
    """MMAction2's inferencer of a dynamic recognizer, for video files.

    MMAction2 takes one clip of a video for a ``Recognizer3D``, and the centre crop, whatever the
    config's test pipeline says; it decodes with decord, also where that reads raw frames.

    Args:
        config: Path of the config.
        checkpoint: Path or URL of the checkpoint; gates that it lacks stay as initialised, which
            is logged.
        device: Such as 'cpu' or 'cuda:1'; None takes CUDA where there is a device, else the CPU.
        label_file: Names of the classes, one a line; None numbers them.
        optimized: Whether the model is an optimised copy, see ``vared2_mmaction.optimize``,
            with the same answers; what executes it is logged.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is of the wrong kind or another network, or the device is missing.
    """
    config = os.fspath(config)
    cfg = read_config(config, 'Recognizer2D', 'Recognizer3D')
    names = None if label_file is None else read_classes(label_file, num_classes(cfg))
    inferencer = _build(cfg, config, choose_device(device))
    load_and_tell(inferencer.model, checkpoint)
    if optimized:
        inferencer.model = optimize_and_log(inferencer.model)
    if names is not None:
        inferencer.visualizer.dataset_meta = {'classes': names}
    return inferencer


def recognize(
    inferencer: ActionRecogInferencer | MMAction2Inferencer, video: str | os.PathLike
) -> Recognition:
    """Classify one video.

    Args:
        inferencer: Of a dynamic recognizer: what :func:`load_inferencer` gives, or one that was
            made by MMAction2's own classes, with its ``label_file``.
        video: Path of the video; for another ``input_format``, the path of what it says.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be decoded, or the network is static or cannot take its clips.

    Examples:
        >>> from vared2_mmaction.apis import load_inferencer, recognize
        >>> inferencer = load_inferencer('configs/vared2_r2plus1d.py', 'checkpoint.pth')
        >>> recognize(inferencer, 'video.mp4').compute_ratio
    """
    path = os.fspath(video)
    inferencer = getattr(inferencer, 'actionrecog_inferencer', inferencer)
    backbone = dynamic_backbone(inferencer.model)
    if inferencer.input_format == 'video':
        check_video(path)
    batch = _decode(inferencer, path)
    sample = run(inferencer.forward, batch, path)
    if sample.pred_score.dim() != 1:
        raise ValueError(
            'model.cls_head.average_clips=None keeps the scores of each view: expected '
            "'prob' or 'score'"
        )
    scores, order = sample.pred_score.cpu().sort(descending=True, stable=True)
    names = _class_names(inferencer, len(order))
    return Recognition(
        labels=tuple(names[i] for i in order.tolist()),
        scores=tuple(scores.tolist()),
        frames=_frames_of_views(batch['inputs'][0], len(sample.policy)),
        **what_it_took(sample, backbone),
    )


def check_video(path: str) -> None:
    """Refuse a path without a file, or with a folder; what is in the file is not looked at."""
    if os.path.isdir(path):
        raise ValueError(f'VIDEO={path!r}: expected a video file, found a folder')
    if not os.path.isfile(path):
        raise FileNotFoundError(f'VIDEO={path!r}: no such file')


def run(network: Callable[[Any], Any], batch: dict[str, Any], path: str) -> ActionDataSample:
    """The answer of a network to a batch of one video; a ValueError that names the video if it
    cannot take it."""
    try:
        (sample,) = network(batch)
    except (RuntimeError, ValueError, FloatingPointError) as error:
        found = f'input of shape {tuple(batch["inputs"][0].shape)}'
        raise ValueError(f'VIDEO={path!r}: the network fails on {found}: {error}') from error
    return sample


def what_it_took(sample: ActionDataSample, backbone: DynamicBackbone) -> dict[str, Any]:
    """Fields of a :class:`Computation` but its frames, from the answer of a network."""
    costs = ('compute_ratio', 'compute_gmacs', 'overhead_gmacs')
    return {
        **{key: sample.get(key) for key in costs},
        'layers': backbone.dynamic_layers,
        'policy': sample.policy.cpu(),
    }


def load_and_tell(model: nn.Module, checkpoint: str | os.PathLike) -> None:
    """Load a checkpoint as :func:`~vared2_mmaction.apis.weights.load_weights` does; log if it lacks
    gates."""
    weights = load_weights(model, checkpoint)
    if 'lacks' in weights:
        print_log(weights, 'current', logging.WARNING)


def read_config(path: str, *kinds: str) -> Config:
    """Read a config for inference, whose ``model.type`` is one of some kinds, or any.

    Its test set has no wrappers, and no ``DecodeOnce`` around the steps of its pipeline.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, is of another model, or has no test pipeline.
    """
    cfg = read_config_file(path)
    kind = (cfg.get('model') or {}).get('type')
    if kinds and kind not in kinds:
        raise ValueError(f'CONFIG={path!r}: model.type={kind!r}, expected {" or ".join(kinds)}')
    dataset = first_dataset((cfg.get('test_dataloader') or {}).get('dataset'))
    steps = pipeline_steps(dataset)
    if not steps:
        raise ValueError(
            f'CONFIG={path!r} lacks test_dataloader.dataset.pipeline: expected the steps that '
            'sample, decode and format the frames of a video'
        )
    cfg.test_dataloader.dataset = {**dataset, 'pipeline': steps}  # where MMAction2 looks for them
    if kind == 'Recognizer2D':  # MMAction2's recognizer fails on it, whatever the backbone
        (cfg.model.get('test_cfg') or {}).pop('max_testing_views', None)
    # Keeps the names of classes; that of the config may be missing, or write files.
    cfg.visualizer = {'type': 'ActionVisualizer'}
    cfg.load_from = None  # what training starts from
    return cfg


def _build(cfg: Config, path: str, device: str) -> ActionRecogInferencer:
    """The inferencer, its weights as initialised."""
    try:
        check_config(cfg)
        with warnings.catch_warnings():  # weights are loaded, and checked, later
            warnings.filterwarnings('ignore', 'Checkpoint is not loaded')
            inferencer = ActionRecogInferencer(cfg, device=device)
        dynamic_backbone(inferencer.model)
    except Exception as error:  # what the classes of a config raise
        raise ValueError(f'CONFIG={path!r}: {first_line(error)}') from error
    return inferencer


def choose_device(device: str | None) -> str:
    """The device of that name, or a ValueError if it is none or missing; without a name CUDA where
    there is a device, else the CPU."""
    number = torch.cuda.device_count()
    if device is None:
        return 'cuda' if number else 'cpu'
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r}: expected 'cpu', 'cuda' or 'cuda:N'") from error
    if chosen.type == 'cuda' and (chosen.index or 0) >= number:
        raise ValueError(f'device={device!r}: PyTorch finds {number} CUDA devices')
    return device


def dynamic_backbone(model: nn.Module) -> DynamicBackbone:
    """The backbone of a network; a ValueError if it is static."""
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, DynamicBackbone):
        raise ValueError(
            f'the network is static (backbone {type(backbone).__name__}): expected a dynamic '
            'backbone (VARED2...), whose layers decide'
        )
    return backbone


def _decode(inferencer: ActionRecogInferencer, path: str) -> dict[str, Any]:
    """A batch of the one video, as the inferencer's pipeline makes it."""
    try:
        (batch,) = inferencer.preprocess([path])
    except Exception as error:  # the steps are the config's
        if isinstance(error, RuntimeError) and path in str(error):  # decoding names the video
            raise ValueError(str(error)) from error
        what = f'VIDEO={path!r}: the test pipeline fails'
        raise ValueError(f'{what}: {first_line(error)}') from error
    if 'inputs' not in batch:
        raise ValueError(
            f'the test pipeline gives {sorted(batch)}: expected PackActionInputs as its last step'
        )
    (inputs,) = batch['inputs']
    channels = 1 if inputs.dim() == 5 else -3
    if inputs.dim() not in (4, 5) or inputs.shape[channels] != 3 or inputs.dtype != torch.uint8:
        raise ValueError(
            'the test pipeline gives '
            f'{inputs.dtype} of shape {tuple(inputs.shape)}: expected RGB frames, uint8 of shape '
            '(views, 3, T, H, W) or (T, 3, H, W)'
        )
    return batch


def _frames_of_views(inputs: Tensor, views: int) -> Tensor:
    """Inputs of a recognizer, (views, 3, T, H, W) or (views T, 3, H, W), as (views, T, H, W, 3)."""
    if inputs.dim() == 5:
        return inputs.permute(0, 2, 3, 4, 1)
    return inputs.unflatten(0, (views, -1)).permute(0, 1, 3, 4, 2)


def _class_names(inferencer: ActionRecogInferencer, number: int) -> Sequence[str]:
    meta = getattr(inferencer.visualizer, 'dataset_meta', None) or {}
    names = meta.get('classes')
    if names is None:
        return [str(i) for i in range(number)]
    if len(names) != number:
        raise ValueError(f'label_file: expected {number} classes, got {len(names)}')
    return names
