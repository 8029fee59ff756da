# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Find the mistakes of a config, and look for what its data sets will read."""

import inspect
import os
from collections.abc import Iterator
from numbers import Integral
from typing import Any

from mmaction.datasets import transforms
from mmaction.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DefaultScope

from vared2_mmaction.apis.check import check_config, num_classes
from vared2_mmaction.apis.config_file import first_line
from vared2_mmaction.errors import COUNT, check

from .check_metrics import check_metrics

_READ_VIDEOS = (
    transforms.DecordInit,
    transforms.OpenCVInit,
    transforms.PyAVInit,
    transforms.PIMSInit,
)
_MOST_FILES_LOOKED_FOR = 20_000


def check_run(cfg: Config, *splits: str) -> None:
    """Check a config, and data and metrics of some splits: 'train', 'val', 'test'.

    Raises:
        ValueError: As :func:`~vared2_mmaction.apis.check.check_config` does, or if there is no such
            data, or the number of classes is none.
        FileNotFoundError: If a checkpoint, an annotation file or a video is missing.
    """
    check_config(cfg)
    classes = num_classes(cfg)
    check('model.cls_head: num_classes', classes, COUNT._replace(or_none=True))
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if loader is None and split != 'val':
            raise ValueError(f'the config has no {split}_dataloader')
        if isinstance(loader, dict):
            scope = cfg.get('default_scope') or 'mmaction'
            check_data(loader.get('dataset'), f'{split}_dataloader.dataset', scope, classes)
        check_metrics(cfg, split)


def check_data(dataset: Any, key: str, scope: str, classes: int | None = None) -> None:
    """Look whether what a data set names is there: the annotation, and videos or folders of frames.

    The data set is built, in a scope of the registries, and asked; ``key`` is its name in the
    config, and labels are below ``classes``, if that is known. What is read from elsewhere than
    the local disk is believed, and so is what is no config of a data set or of a wrapper such as
    ``ConcatDataset``.

    Raises:
        FileNotFoundError: If something is missing.
        ValueError: If the data set cannot be built, is empty, or has a label of another class.
    """
    if not isinstance(dataset, dict):
        return
    kind = dataset.get('type')
    found = _class(kind)
    if found is None:
        raise ValueError(
            f'{key}.type={kind!r}: expected a registered data set; is custom_imports missing a '
            'module?'
        )
    if isinstance(found, type) and issubclass(found, BaseDataset):
        built = _build(dataset, key, scope)
        _check_files(built, key)
        _check_labels(built, key, classes)
        return
    check_data(dataset.get('dataset'), f'{key}.dataset', scope, classes)
    for number, part in enumerate(dataset.get('datasets') or ()):
        check_data(part, f'{key}.datasets[{number}]', scope, classes)


def _build(config: dict, key: str, scope: str) -> BaseDataset:
    """The data set with its list of annotations, ``data_list``."""
    with DefaultScope.overwrite_default_scope(scope):
        try:
            lazily = {'lazy_init': True, 'serialize_data': False}  # as far as its class takes that
            taken = {key: value for key, value in lazily.items() if _takes(config['type'], key)}
            dataset = DATASETS.build({**config, **taken})
            _check_annotation(dataset.ann_file, key)
            dataset.full_init()
        except ImportError:
            raise
        except OSError as error:
            if (said := str(error)).startswith(key):
                raise
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
            raise kind(f'{key}: {said}') from error
        except Exception as error:  # the classes of a config may raise anything
            where = f'{key}.ann_file={config.get("ann_file")!r}'
            raise ValueError(f'{where}: {config["type"]} fails: {first_line(error)}') from error
    return dataset


def _class(kind: Any) -> Any:
    return DATASETS.get(kind) if isinstance(kind, str) else kind


def _takes(kind: Any, argument: str) -> bool:
    parameters = inspect.signature(_class(kind)).parameters
    return argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _check_annotation(path: Any, key: str) -> None:
    if path and isinstance(path, str) and '://' not in path and not os.path.exists(path):
        raise FileNotFoundError(f'{key}.ann_file={path!r}: no such annotation file')


def _check_files(dataset: BaseDataset, key: str) -> None:
    if not len(dataset):
        raise ValueError(f'{key}.ann_file={dataset.ann_file!r}: expected videos, found none')
    reader = next(_readers(dataset.pipeline), None)
    if reader is None or reader.io_backend != 'disk':
        return
    # Asking a file server for millions of files takes longer than the first epoch's first error.
    some = range(0, len(dataset), -(-len(dataset) // _MOST_FILES_LOOKED_FOR))
    paths = [path for i in some if (path := _path(dataset.get_data_info(i), reader))]
    exists = os.path.isfile if isinstance(reader, _READ_VIDEOS) else os.path.isdir
    missing = [path for path in paths if not exists(path)]
    if missing:
        raise FileNotFoundError(
            f'{key}: {len(missing)} of {len(paths)} videos looked for are missing, first '
            f'{missing[0]!r}; expected those of {dataset.ann_file!r} under '
            f'data_prefix={dict(dataset.data_prefix)}'
        )


def _check_labels(dataset: BaseDataset, key: str, classes: int | None) -> None:
    """A label that no class has ends a training, and counts as an error of a test in silence; tests
    may be without labels, which are -1."""
    if classes is None:
        return
    least = 0 if key.startswith('train') else -1
    for info in dataset.data_list:
        label = info.get('label')
        labels = label if isinstance(label, list | tuple) else [label]
        if any(isinstance(one, Integral) and not least <= int(one) < classes for one in labels):
            name = info.get('filename') or info.get('frame_dir')
            raise ValueError(
                f'{key}.ann_file={dataset.ann_file!r}: {name!r} has the label {label}; expected '
                f'0 or more and less than num_classes={classes} of the head'
            )


def _readers(pipeline: Any) -> Iterator[Any]:
    """Transforms that read files, within those that hold others too."""
    for transform in getattr(pipeline, 'transforms', ()):
        if isinstance(transform, (*_READ_VIDEOS, transforms.RawFrameDecode)):
            yield transform
        yield from _readers(transform)


def _path(info: dict, reader: Any) -> str | None:
    """What is read for an annotation; None where that cannot be told from it."""
    videos = isinstance(reader, _READ_VIDEOS)
    path: str | None = info.get('filename' if videos else 'frame_dir')
    if path is None or '://' in path:
        return None
    # Lists of videos may leave the suffix out, for decord.
    bare = isinstance(reader, transforms.DecordInit) and not os.path.splitext(path)[1]
    return f'{path}.mp4' if bare and not os.path.isfile(path) else path
