# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Read what ``tools/test.py --dump`` wrote, and execute nothing that a file asks for.

A pickle may call any function by its name. A dump needs tensors and arrays only: exactly these are
rebuilt, all else is refused by name.
"""

import functools
import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, LabelData

from vared2_mmaction.checkpoints.arrays import ForbiddenGlobalError, stand_ins

# Samples that were tested in a batch share storages, and each brings a copy of the whole; with
# several processes, several batches take turns.
_STORAGES_KEPT = 256


def load_dump(path: str) -> list[dict[str, Any]]:
    """Load the predictions that ``tools/test.py --dump`` wrote, a dict for every sample.

    Samples may share memory, so do not write to their tensors.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no dump: not a pickle, cut off, empty, of something else than dicts, or
            of anything else than tensors, arrays, MMEngine's structures and plain values.
    """
    wanted = 'expected what tools/test.py --dump writes'
    with open(path, 'rb') as file:
        try:
            samples = _DumpUnpickler(file).load()
        except ForbiddenGlobalError as error:
            raise ValueError(f'{path}: {error}') from error
        except Exception as error:  # unpickling some other file may raise anything
            problem = f'{type(error).__name__}: {str(error).partition(chr(10))[0]}'
            raise ValueError(f'{path}: {wanted}; it is no pickle or cut off ({problem})') from error
    if not isinstance(samples, list) or not samples:
        found = 'an empty list' if samples == [] else f'a {type(samples).__name__}'
        raise ValueError(f'{path}: {wanted}, a list of samples; found {found}')
    for index, sample in enumerate(samples):
        if not isinstance(sample, dict):
            found = f'sample {index} is a {type(sample).__name__}'
            raise ValueError(f'{path}: {wanted}, a list of dicts; {found}')
    return samples


class _DumpUnpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._allowed = _allowed()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[f'{module}.{name}']
        except KeyError:
            raise ForbiddenGlobalError(
                f'it asks for {module}.{name}, which no dump of predictions holds; it is refused'
            ) from None

    def persistent_load(self, key: Any) -> Any:
        raise pickle.UnpicklingError('a checkpoint of torch.save, not a dump')


def _allowed() -> dict[str, Callable]:
    """What a dump may ask for, by the names that pickles give it; nothing that others have, since a
    pickle may set attributes of it."""
    return {
        **stand_ins(),
        'torch._utils._rebuild_tensor_v2': functools.partial(_rebuild_tensor),
        'torch.storage._load_from_bytes': functools.lru_cache(_STORAGES_KEPT)(_load_storage),
        'collections.OrderedDict': OrderedDict,
        'torch.Size': torch.Size,
        '__builtin__.set': set,  # protocol 2 calls builtins by their old name
        'builtins.set': set,
        **{
            f'{kind.__module__}.{kind.__name__}': _rebuilt(kind)
            for kind in (BaseDataElement, InstanceData, LabelData)
        },
    }


def _rebuilt(kind: type) -> type:
    """A class whose objects become those of another when they get their attributes."""

    class Rebuilt(kind):
        def __setstate__(self, state: dict[str, Any]) -> None:
            self.__dict__.update(state)
            object.__setattr__(self, '__class__', kind)

    return Rebuilt


def _rebuild_tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    """A view of a storage; PyTorch's own function enlarges one that is too small, by whatever lies
    in the memory of the process."""
    whole = torch.empty(0, dtype=storage.dtype).set_(storage)
    return whole.as_strided(size, stride, offset)


def _load_storage(content: bytes) -> Any:
    """Load the memory of a tensor, which is a file of torch.save inside the pickle."""
    try:
        storage = torch.load(io.BytesIO(content), weights_only=True, map_location='cpu')
    except pickle.UnpicklingError as error:  # its text advises to switch the protection off
        asked = re.search(r'GLOBAL (\S+)', str(error))
        what = asked[1] if asked else 'something that is no memory'
        raise ForbiddenGlobalError(f'inside a tensor it asks for {what}; it is refused') from None
    if not isinstance(storage, torch.UntypedStorage | torch.storage.TypedStorage):
        raise pickle.UnpicklingError(f'expected the memory of a tensor, got {type(storage)}')
    return storage


def as_array(value: Any) -> np.ndarray:
    """A tensor, an array or numbers as an array."""
    return np.asarray(value.numpy() if hasattr(value, 'numpy') else value)
