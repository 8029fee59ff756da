# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Pictures and a page of a test: which videos took how much compute, and where gates saved it."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmaction.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import init_default_scope

from annotations.ava_format import Keyframe
from vared2_mmaction.apis.check import check_config
from vared2_mmaction.apis.labels import read_actions, read_classes
from vared2_mmaction.datasets.pipelines import first_dataset
from vared2_mmaction.models.policy import dynamic_layers

from . import categories, figures
from .dump import as_array, load_dump
from .keyframes import KeyframeReader
from .page import Page, write_page
from .strips import Strip, StripReader
from .videos import Source, Videos, label_indices, read_videos


@dataclass(frozen=True)
class Study:
    """What a test of a config found."""

    videos: Videos
    dataset: BaseDataset
    layers: dict[str, tuple[int, int]]
    """Numbers of channel and temporal options of the dynamic layers, by name."""
    classes: list[str]
    """Name of every class."""


def load_study(dump: str, cfg: Config, labels: str | None = None) -> Study:
    """Read a dump next to the data set and the network it is of.

    Args:
        dump: What ``tools/test.py --dump`` wrote.
        cfg: The config of that test.
        labels: File of names, as :mod:`vared2_mmaction.apis.labels` reads it; by default that of
            the data set, or numbers.

    Raises:
        ValueError: If the dump is none, is not that of a VARED2 head, or is of other videos or
            another network; or the labels are of other classes.
        FileNotFoundError: If a file is missing; videos may be.
    """
    samples = load_dump(dump)
    cfg = cfg.copy()
    cfg.load_from = None  # what training starts from does not matter here
    check_config(cfg)
    init_default_scope(cfg.get('default_scope') or 'mmaction')
    dataset = build_test_dataset(cfg)
    try:
        videos = read_videos(samples, read_sources(dataset))
    except ValueError as error:
        raise ValueError(f'{dump}: {error}') from error
    layers = count_options(cfg)
    _check_layers(dump, videos, layers)
    return Study(videos, dataset, layers, _read_names(labels, videos, dataset))


def build_test_dataset(cfg: Config) -> BaseDataset:
    """The data set of a config's test.

    Raises:
        ValueError: If there is none, or its order is not that of a dump.
        FileNotFoundError: If its annotation file is missing.
    """
    loader = cfg.get('test_dataloader')
    if loader is None:
        raise ValueError('the config has no test_dataloader')
    if (loader.get('sampler') or {}).get('shuffle'):
        raise ValueError(
            'test_dataloader.sampler.shuffle=True: expected False, or nobody knows which video a '
            'prediction is of'
        )
    ann_file = loader.dataset.get('ann_file')
    path = os.path.join(loader.dataset.get('data_root') or '', ann_file or '')
    if ann_file and '://' not in path and not os.path.isfile(path):
        raise FileNotFoundError(f'test_dataloader.dataset.ann_file={path!r}: no such file')
    if 'proposal_file' in loader.dataset:
        loader.dataset.proposal_file = None  # what boxes were tested stands in the dump
    return DATASETS.build(loader.dataset)


def read_sources(dataset: BaseDataset) -> list[Source]:
    """The videos of a data set, in its order; none of them is opened."""
    sources = []
    classes = getattr(first_dataset(dataset), 'num_classes', None) or 0
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        name = info.get('filename') or info.get('frame_dir')
        if name is None:
            found = sorted(info)
            raise ValueError(
                f'test_dataloader.dataset: video {index} has {found}; expected filename or '
                'frame_dir, as those of VideoDataset and RawframeDataset'
            )
        if 'gt_bboxes' in info:
            sources.append(_read_keyframe(str(name), info, classes))
        else:
            sources.append(Source(str(name), label_indices(info.get('label', -1), classes)))
    return sources


def _read_keyframe(name: str, info: Mapping[str, Any], classes: int) -> Source:
    boxes = as_array(info['gt_bboxes'])
    actions = [label_indices(labels, classes) for labels in info['gt_labels']]
    keyframe = Keyframe(info['video_id'], info['timestamp'], boxes, actions)
    labels = tuple(sorted(set().union(*actions)))
    return Source(f'{name} @ {keyframe.timestamp}', labels, keyframe)


def _read_names(path: str | None, videos: Videos, dataset: BaseDataset) -> list[str]:
    if not videos.detections:
        return read_classes(path, videos.num_classes)
    dataset = first_dataset(dataset)
    custom = getattr(dataset, 'custom_classes', None)  # with the background
    path = path or getattr(dataset, 'label_file', None)
    return read_actions(path, videos.num_classes, custom and custom[1:])


def count_options(cfg: Config) -> dict[str, tuple[int, int]]:
    """Numbers of channel and temporal options of a config's dynamic layers, by name.

    Raises:
        ValueError: If the backbone has no dynamic layer.
    """
    backbone: Any = MODELS.build(cfg.model.backbone)
    if not (layers := dynamic_layers(backbone)):
        kind = cfg.model.backbone.type
        raise ValueError(f'model.backbone.type={kind!r}: expected a backbone with dynamic layers')
    return {name: layer.num_options for name, layer in layers.items()}


def _check_layers(dump: str, videos: Videos, layers: dict[str, tuple[int, int]]) -> None:
    if len(videos.chosen) != len(layers):
        raise ValueError(
            f'{dump}: policy has {len(videos.chosen)} layers; expected the {len(layers)} of the '
            "config's backbone"
        )
    for name, numbers, shares in zip(layers, layers.values(), videos.chosen, strict=True):
        for dimension, number, share in zip(('channel', 'temporal'), numbers, shares, strict=True):
            if share[number:].any():
                option = share.nonzero()[0][-1]
                raise ValueError(
                    f'{dump}: policy has {dimension} option {option} in layer {name}, which has '
                    f'{number}; expected the policy of the network of the config'
                )


def write_study(
    study: Study,
    folder: str,
    title: str,
    number: int = 16,
    frames: int = 8,
    progress: Callable[[Sequence[int]], Iterable[int]] = lambda indices: indices,
) -> tuple[list[str], list[str]]:
    """Write the figures and the page.

    Args:
        study: What :func:`load_study` gave.
        folder: Where to; is made where there is none, and its files are replaced.
        title: Of the page.
        number: How many categories to show videos of, see
            :func:`~.categories.spread_evenly`.
        frames: Frames of a video to show.
        progress: Wraps the indices of the videos that are read.

    Returns:
        The files written; and the names of the videos that could not be shown.

    Raises:
        ValueError: If the pipeline of the data set decodes nothing.
    """
    videos = study.videos
    summaries = categories.summarise_categories(videos, study.classes)
    shown = categories.spread_evenly(summaries, number)
    wanted = sorted({index for category in shown for index in (category.most, category.least)})
    strips = _read_strips(study, frames, progress(wanted)) if wanted else {}
    drawn = {
        'options': figures.draw_options(videos.chosen, study.layers),
        'compute': figures.draw_compute(videos),
    }
    if shown:
        drawn['categories'] = figures.draw_categories(shown, videos, strips)
    os.makedirs(folder, exist_ok=True)
    files = []
    for name, figure in drawn.items():
        files.append(os.path.join(folder, f'{name}.png'))
        figure.savefig(files[-1], dpi=140)
    files.append(os.path.join(folder, 'index.html'))
    images = {name: path for name, path in zip(drawn, files, strict=False) if name != 'categories'}
    write_page(files[-1], Page(title, videos, study.classes, summaries, shown, strips, images))
    return files, [videos.sources[index].name for index in wanted if strips[index].problem]


def _read_strips(study: Study, frames: int, wanted: Iterable[int]) -> dict[int, Strip]:
    if study.videos.detections:
        reader: StripReader = KeyframeReader(study.dataset, frames, study.videos, study.classes)
    else:
        reader = StripReader(study.dataset, frames)
    return {index: reader.read(index) for index in wanted}
