# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Batches of noise or of videos, to time networks with."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmaction.models.recognizers import Recognizer2D
from mmaction.structures import ActionDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor, nn

from counting.clips import Views, random_clip, read_clips
from vared2_mmaction.models.static import is_detector


class Batch(NamedTuple):
    """Preprocessed videos of one view each, as a recognizer or detector takes them."""

    inputs: Tensor
    """(N, 1, C, T, H, W) for a ``Recognizer3D``, (N, T, C, H, W) for a ``Recognizer2D``,
    (N, C, T, H, W) for a ``FastRCNN``."""
    data_samples: list[ActionDataSample]

    @classmethod
    def of(cls, batches: Sequence['Batch']) -> 'Batch':
        """The videos of several batches."""
        samples = [sample for batch in batches for sample in batch.data_samples]
        return cls(torch.cat([batch.inputs for batch in batches]), samples)

    def to(self, device: str) -> 'Batch':
        """The same on a device."""
        return Batch(self.inputs.to(device), [sample.to(device) for sample in self.data_samples])


def make_batch(model: nn.Module, batch_size: int, shape: Sequence[int], seed: int) -> Batch:
    """Videos of noise with random labels, one box each for a detector; the same for the same
    seed."""
    flat = isinstance(model, Recognizer2D)
    clip = (shape[0], *shape[2:]) if flat else shape
    views = Views(shape[1], 1, 1, None)
    videos = [random_clip(model, clip, views, seed + i) for i in range(batch_size)]
    generator = torch.Generator().manual_seed(seed)
    classes = classifier(model).num_classes
    labels = torch.randint(classes, (batch_size,), generator=generator).tolist()
    if is_detector(model):
        samples = [_boxed_sample(shape, classes, label) for label in labels]
        return Batch(torch.cat(videos), samples)
    return Batch(torch.cat(videos), [ActionDataSample().set_gt_label(label) for label in labels])


def read_batches(cfg: Config, model: nn.Module, number: int) -> tuple[Batch, ...]:
    """Videos of the test set, evenly spread over its list, in batches of one.

    Of each video the clip in the middle is taken, of those that the test pipeline makes.

    Raises:
        ValueError: If there is no test set, a video cannot be read, or clips differ in size.
        FileNotFoundError: If an annotation file or a video is missing.
    """
    preprocess: Any = model.data_preprocessor
    videos = []
    for clips, sample in read_clips(cfg, model, 'test', number):
        packed = {'inputs': [clips[len(clips) // 2]], 'data_samples': [sample]}
        data = preprocess(packed)
        videos.append(Batch(data['inputs'], data['data_samples']))
    shapes = {tuple(video.inputs.shape) for video in videos}
    if len(shapes) > 1:
        sizes = ' and '.join(' x '.join(map(str, shape[-2:])) for shape in sorted(shapes))
        raise ValueError(f'test_dataloader: expected clips of one size, found {sizes}')
    return tuple(videos)


def clip_of(model: nn.Module, batch: Batch) -> tuple[int, ...]:
    """C, T, H and W of a clip of a batch."""
    clip = batch.inputs[0]
    return tuple((clip.transpose(0, 1) if isinstance(model, Recognizer2D) else clip).shape[-4:])


def classifier(model: Any) -> Any:
    """The part of a recognizer or detector that says how likely each class is."""
    return model.roi_head.bbox_head if is_detector(model) else model.cls_head


def _boxed_sample(shape: Sequence[int], classes: int, label: int) -> ActionDataSample:
    """A box over half the frame with a label, which is proposed as well."""
    height, width = shape[-2:]
    box = torch.tensor([[width / 4, height / 4, width * 3 / 4, height * 3 / 4]])
    labels = torch.zeros(1, classes)
    labels[0, max(label, 1)] = 1  # class 0 stands for the background
    sample = ActionDataSample(metainfo={'img_shape': (height, width)})
    sample.gt_instances = InstanceData(bboxes=box, labels=labels)
    sample.proposals = InstanceData(bboxes=box)
    return sample
