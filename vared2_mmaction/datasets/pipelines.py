# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Find data sets in their wrappers, and the steps of their pipelines."""

from collections.abc import Iterator
from typing import Any


def type_name(kind: Any) -> str:
    """Name of a class, or of what the ``type`` of a config says, without its scope."""
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]


def first_dataset(dataset: Any) -> Any:
    """The first data set in wrappers such as ``ConcatDataset`` that has a pipeline.

    ``dataset`` is a config, or what is built of one, and so is what is returned: ``dataset`` itself
    where no part of it has a pipeline.
    """
    inner = dataset
    while _get(inner, 'pipeline') is None:
        inner = next(iter(_get(inner, 'datasets') or ()), _get(inner, 'dataset'))
        if inner is None:
            return dataset
    return inner


def pipeline_steps(dataset: Any) -> list:
    """Steps of the pipeline of :func:`first_dataset`, those of ``DecodeOnce`` in its place.

    They are configs where ``dataset`` is one; there are none where there is no pipeline.
    """
    return list(_unfold(_get(first_dataset(dataset), 'pipeline')))


def _get(owner: Any, name: str) -> Any:
    return owner.get(name) if isinstance(owner, dict) else getattr(owner, name, None)


def _unfold(pipeline: Any) -> Iterator[Any]:
    for step in getattr(pipeline, 'transforms', pipeline) or ():
        kind = step.get('type') if isinstance(step, dict) else type(step)
        if type_name(kind) == 'DecodeOnce':
            yield from _unfold(_get(step, 'transforms'))
        else:
            yield step
