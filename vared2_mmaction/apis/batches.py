# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Batches of noise, to time networks with."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmaction.models.recognizers import Recognizer2D
from mmaction.structures import ActionDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..models.static import is_detector
from . import flops


class Batch(NamedTuple):
    """Preprocessed videos of one view each, as a recognizer or detector takes them."""

    inputs: Tensor
    """(N, 1, C, T, H, W) for a ``Recognizer3D``, (N, T, C, H, W) for a ``Recognizer2D``,
    (N, C, T, H, W) for a ``FastRCNN``."""
    data_samples: list[ActionDataSample]


def make_batch(model: nn.Module, batch_size: int, shape: Sequence[int], seed: int) -> Batch:
    """Videos of noise with random labels, one box each for a detector; the same for the same
    seed."""
    flat = isinstance(model, Recognizer2D)
    clip = (shape[0], *shape[2:]) if flat else shape
    views = flops.Views(shape[1], 1, 1, None)
    videos = [flops.random_clip(model, clip, views, seed + i) for i in range(batch_size)]
    generator = torch.Generator().manual_seed(seed)
    classes = classifier(model).num_classes
    labels = torch.randint(classes, (batch_size,), generator=generator).tolist()
    if is_detector(model):
        samples = [_boxed_sample(shape, classes, label) for label in labels]
        return Batch(torch.cat(videos), samples)
    return Batch(torch.cat(videos), [ActionDataSample().set_gt_label(label) for label in labels])


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
