# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Files that want to execute something, to read the memory of the process, or are no such file.

Whatever is executed leaves a mark: it makes the file ``touched``.
"""

import builtins
import codecs
import collections
import ctypes
import functools
import importlib
import io
import operator
import os
import pickle
import runpy
import shutil
import subprocess
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.fileio import load as load_any
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.utils import get_object_from_string

try:
    from numpy._core import multiarray
except ImportError:  # numpy < 2
    from numpy.core import multiarray  # type: ignore[no-redef]


class Asks:
    """Asks whoever loads it to call a function, and to set what came of it to a state."""

    def __init__(self, function: Callable, *args: Any, state: Any = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.reduced


def calls(touched: Path) -> Iterator[tuple[str, Any]]:
    """Functions that no file has to call, with arguments that would leave a mark."""
    name, code = str(touched), f'open({str(touched)!r}, "w").close()'
    shell = f'touch {touched}'
    yield 'system', Asks(os.system, shell)
    yield 'popen', Asks(os.popen, shell)
    yield 'mkdir', Asks(os.mkdir, name)
    yield 'makedirs', Asks(os.makedirs, name)
    yield 'os.open', Asks(os.open, name, os.O_CREAT)
    yield 'symlink', Asks(os.symlink, '/', name)
    yield 'putenv', Asks(os.putenv, 'A', 'B')
    yield 'Popen', Asks(subprocess.Popen, ['touch', name])
    yield 'run', Asks(subprocess.run, ['touch', name])
    yield 'check_output', Asks(subprocess.check_output, ['touch', name])
    yield 'eval', Asks(eval, code)
    yield 'exec', Asks(exec, code)
    yield 'compile', Asks(compile, code, '', 'exec')
    yield 'open', Asks(open, name, 'w')
    yield 'io.open', Asks(io.open_code, __file__)
    yield 'FileIO', Asks(io.FileIO, name, 'w')
    yield 'codecs.open', Asks(codecs.open, name, 'w')
    yield 'import', Asks(__import__, 'os')
    yield 'import_module', Asks(importlib.import_module, 'os')
    yield 'run_path', Asks(runpy.run_path, __file__)
    yield 'rmtree', Asks(shutil.rmtree, name)
    yield 'copyfile', Asks(shutil.copyfile, __file__, name)
    yield 'CDLL', Asks(ctypes.CDLL, name)
    yield 'setattr', Asks(setattr, HistoryBuffer, 'x', 1)
    yield 'delattr', Asks(delattr, HistoryBuffer, 'mean')
    yield 'vars', Asks(vars, HistoryBuffer)
    yield 'type', Asks(type, 'New', (), {})
    yield 'input', Asks(builtins.input, 'password')
    yield 'map', Asks(map, os.system, [shell])
    yield 'partial', Asks(functools.partial, os.system, shell)
    yield 'reduce', Asks(functools.reduce, os.system, [shell])
    yield 'attrgetter', Asks(operator.attrgetter, 'system')
    yield 'methodcaller', Asks(operator.methodcaller, 'system', shell)
    yield 'SimpleNamespace', Asks(types.SimpleNamespace)
    yield 'pickle.loads', Asks(pickle.loads, pickle.dumps(Asks(os.system, shell)))
    yield 'np.load', Asks(np.load, name)
    yield 'np.save', Asks(np.save, name, 1)
    yield 'np.fromfile', Asks(np.fromfile, __file__)
    yield 'np.memmap', Asks(np.memmap, name, 'u1', 'w+', 0, (1,))
    yield 'torch.load', Asks(torch.load, name)
    yield 'torch.save', Asks(torch.save, 1, name)
    yield 'torch.hub', Asks(torch.hub.load, name, 'x')
    yield 'torch.jit', Asks(torch.jit.load, name)
    yield 'Config.fromfile', Asks(Config.fromfile, name)
    yield 'Config.fromstring', Asks(Config.fromstring, code, '.py')
    yield 'mmengine.load', Asks(load_any, name)
    yield 'get_object', Asks(get_object_from_string, 'os.system')
    yield 'Path', Path(touched)
    yield 'deep', {'a': [({'b': Asks(os.system, shell)},)]}
    yield 'default', collections.defaultdict(functools.partial(os.system, shell))


def arrays() -> Iterator[tuple[str, Any]]:
    """NumPy values that are more than plain numbers."""
    objects = {'a': (np.dtype('O'), 0)}
    empty = (np.ndarray, (0,), b'b')
    rebuild = multiarray._reconstruct
    for flags in (0, 1, 63):
        state = (3, '|', None, ('a',), objects, 8, 1, flags)
        yield f'V8 with flags {flags}', Asks(np.dtype, 'V8', False, True, state=state)
        state = (3, '<', None, ('a',), objects, 8, 8, flags)
        yield f'f8 with fields, flags {flags}', Asks(np.dtype, 'f8', False, True, state=state)
    flagged = (3, '<', None, None, None, -1, -1, 63)
    yield 'f8 with flags', Asks(np.dtype, 'f8', False, True, state=flagged)
    larger = (3, '<', None, None, None, 1 << 40, 8, 0)
    yield 'f8 of another size', Asks(np.dtype, 'f8', False, True, state=larger)
    inner = (3, '|', (np.dtype('O'), (4,)), None, None, 32, 8, 0)
    yield 'V32 with subarray', Asks(np.dtype, 'V32', False, True, state=inner)
    described = (4, '<', None, None, None, -1, -1, 0, {'a': 1})
    yield 'f8 with metadata', Asks(np.dtype, 'f8', False, True, state=described)
    for code in ('O', 'V8', 'S4', 'U4', 'M8[s]', 'm8', 'O8', 'c', 'f8,O', 'f3', 3, None):
        yield f'dtype {code}', Asks(np.dtype, code)
    yield 'dtype of a list', Asks(np.dtype, [('a', 'O')])
    yield 'dtype of a class', Asks(np.dtype, HistoryBuffer)
    yield 'uninitialised', Asks(np.ndarray, (1000,), 'f8')
    yield 'uninitialised objects', Asks(np.ndarray, (10,), 'O')
    yield 'uninitialised rebuilt', Asks(rebuild, HistoryBuffer, (1000,), 'f8')
    yield 'array of objects', np.array([{}, []], dtype=object)
    yield 'array of texts', np.array(['a'])
    yield 'structured array', np.zeros(2, [('a', 'f8')])
    yield 'array of dates', np.array(['2020-01-01'], 'M8[D]')
    for number, state in enumerate(
        [
            (1, (1 << 40,), np.dtype('f8'), False, b'x' * 8),
            (1, (2,), np.dtype('f8'), False, b'x' * 8),
            (1, (-1,), np.dtype('f8'), False, b'x' * 8),
            (1, (1,), 'O', False, [1]),
            (1, (1,), np.dtype('f8'), False, [1.0]),
            (1, (1,), None, False, b'x' * 8),
            (1,),
            'state',
        ]
    ):
        yield f'array with state {number}', Asks(rebuild, *empty, state=state)
    yield 'scalar that is too short', Asks(multiarray.scalar, np.dtype('f8'), b'x')
    yield 'scalar object', Asks(multiarray.scalar, np.dtype('O'), {})
    yield 'scalar of nothing', Asks(multiarray.scalar, np.dtype('f8'))
    yield 'bytes of a number', Asks(multiarray.scalar, np.dtype('f8'), Asks(bytes, 8))
    yield 'bare scalar', Asks(multiarray.scalar, 'f8', b'x' * 8)
    spelled = Asks(codecs.encode, 'x', 'rot13')
    yield 'codec rot13', Asks(multiarray.scalar, np.dtype('f8'), spelled)


def attributes() -> Iterator[tuple[str, Any]]:
    """Attributes of what a file may name."""
    for owner, name in (
        (HistoryBuffer, '__init__'),
        (HistoryBuffer, '__globals__'),
        (HistoryBuffer, '__class__'),
        (HistoryBuffer, 'register_statistics'),
        (HistoryBuffer, 'update'),
        (np.ndarray, 'tofile'),
        (np.dtype, '__init__'),
        (collections.OrderedDict, 'fromkeys'),
    ):
        yield f'{owner.__name__}.{name}', Asks(getattr, owner, name)
    chained = Asks(getattr, Asks(getattr, HistoryBuffer, 'mean'), '__globals__')
    yield 'mean.__globals__', chained


def other_files(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """Files of another kind, and parts of a right one."""
    for share in (0.0, 0.1, 0.5, 0.9, 0.999):
        yield f'{share:.1%} of a file', whole[: int(share * len(whole))]
    yield 'all but a byte', whole[:-1]
    yield 'text', b'weights of a network\n' * 50
    yield 'a page', b'<!DOCTYPE html><html>404</html>'
    yield 'zeros', bytes(1000)
    yield 'bytes', bytes(range(256)) * 4
    yield 'an archive', b'PK\3\4' + bytes(200)
    yield 'an end', b'.'
    yield 'a number', pickle.dumps(3, protocol=2)


def checkpoints(touched: Path, content: dict) -> Iterator[tuple[str, bytes]]:
    """Bytes of checkpoints that must be refused, in either of PyTorch's formats."""
    places: list[Callable[[Any], Any]] = [
        lambda value: value,
        lambda value: {**content, 'meta': value},
        lambda value: {**content, 'message_hub': {'log_scalars': {'loss': value}}},
        lambda value: {**content, 'state_dict': {'weight': value}},
        lambda value: {**content, 'optimizer': {'state': [value]}},
    ]
    asking = [*calls(touched), *arrays(), *attributes()]
    for number, (name, value) in enumerate(asking):
        stream = io.BytesIO()
        placed = places[number % len(places)](value)
        torch.save(placed, stream, _use_new_zipfile_serialization=number % 3 != 0)
        yield name, stream.getvalue()
    stream = io.BytesIO()
    torch.save(content, stream)
    yield from other_files(stream.getvalue())
    for name, other in (('a list', [1]), ('a tensor', torch.ones(1)), ('text inside', 'text')):
        stream = io.BytesIO()
        torch.save(other, stream)
        yield name, stream.getvalue()


def dumps(touched: Path, samples: list[dict]) -> Iterator[tuple[str, bytes]]:
    """Bytes of dumps that must be refused, in all protocols of pickles."""
    asking = [*calls(touched), *arrays(), *attributes(), *tensors(touched)]
    for number, (name, value) in enumerate(asking):
        sample: Any = [{'pred_score': value}, {'a': [(value,)]}, value][number % 3]
        yield name, pickle.dumps([sample], protocol=number % 5)
    yield from states()
    yield from other_files(pickle.dumps(samples, protocol=2))


def tensors(touched: Path) -> Iterator[tuple[str, Any]]:
    """Tensors whose memory asks for functions, or that want more of it than they bring."""
    memory = torch.storage.TypedStorage(4, dtype=torch.float32)
    rebuild, hooks = torch._utils._rebuild_tensor_v2, collections.OrderedDict()
    for name, offset, size, stride in (
        ('too large', 0, (1000,), (1,)),
        ('too far', 3, (2,), (1,)),
        ('beyond', 1 << 40, (1,), (1,)),
        ('before', -2, (2,), (1,)),
        ('too wide', 0, (2, 2), (1 << 40, 1)),
        ('backwards', 3, (2,), (-1,)),
    ):
        yield f'tensor {name}', Asks(rebuild, memory, offset, size, stride, False, hooks)
    for value in (Asks(os.system, f'touch {touched}'), Asks(eval, '1'), [1], {'a': torch.ones(1)}):
        stream = io.BytesIO()
        torch.save(value, stream, _use_new_zipfile_serialization=False)
        load = torch.storage._load_from_bytes
        yield f'memory that is {type(value).__name__}', Asks(load, stream.getvalue())


def states() -> Iterator[tuple[str, bytes]]:
    """Pickles that set an attribute of a class or function that others use as well."""
    for named in (
        'mmengine.structures.base_data_element BaseDataElement',
        'mmengine.structures.instance_data InstanceData',
        'numpy ndarray',
        'numpy dtype',
        'numpy.core.multiarray scalar',
        '_codecs encode',
        'torch._utils _rebuild_tensor_v2',
        'collections OrderedDict',
        'torch Size',
    ):
        asked = named.replace(' ', '\n').encode()
        attribute = b'N}X\x08\x00\x00\x00__iter__K\x01s\x86b'  # (None, {'__iter__': 1})
        yield f'attribute of {named}', b'\x80\x02](c' + asked + b'\n' + attribute + b'e.'
