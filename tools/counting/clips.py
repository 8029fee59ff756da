# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What a config's pipeline makes of a video, and clips of noise or of a data set to run."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmaction.models.recognizers import Recognizer2D
from mmaction.registry import DATASETS
from mmaction.structures import ActionDataSample
from mmengine.config import Config
from torch import Tensor, nn

from commands.check_data import check_run
from vared2_mmaction.datasets.pipelines import pipeline_steps, type_name
from vared2_mmaction.models.kinds import Convolution
from vared2_mmaction.models.static import is_detector

_CROPS = {'CenterCrop': 1, 'ThreeCrop': 3, 'TenCrop': 10}


class Views(NamedTuple):
    """What a pipeline makes of a video: clips along time, and crops of each; ``size`` is height
    and width, None where the pipeline leaves them open."""

    frames: int
    clips: int
    crops: int
    size: tuple[int, int] | None


def views_of_split(cfg: Config, model: nn.Module, split: str) -> Views | None:
    """Read clips and crops from the pipeline of a split; None where it does not tell."""
    dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
    views, crops, size = None, 1, None
    for step in pipeline_steps(dataset):
        kind = type_name(step['type'])
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
    check_run(cfg, split)
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
