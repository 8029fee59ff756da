# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Known defects of MMEngine around checkpoints, mended when this package is imported."""

import functools
import inspect
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .replacing import replaces


def apply() -> None:
    """Mend what is broken."""
    _allow_checkpoints_of_the_trainer()
    _read_weights_only()
    _report_loading()
    _resume_what_is_whole()
    _write_whole_files()


def _allow_checkpoints_of_the_trainer() -> None:
    """PyTorch >= 2.6 loads weights only and refuses the logs in a trainer's checkpoint.

    The protection stays on. Exactly the harmless globals that such a checkpoint holds are
    allowed; what else a file asks for is refused by name.
    """
    from mmengine.logging.history_buffer import HistoryBuffer

    from .checkpoints.arrays import stand_ins

    allowed = stand_ins()

    def getattr_of_history_buffer(owner: Any, name: str) -> Any:
        if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
            asked = next((key for key, stand_in in allowed.items() if stand_in is owner), owner)
            raise ValueError(
                f'checkpoint asks for attribute {name!r} of {asked}; only the statistics of '
                'HistoryBuffer are allowed'
            )
        return getattr(owner, name)

    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (getattr_of_history_buffer, 'builtins.getattr'),
            *((stand_in, name) for name, stand_in in allowed.items()),
        ]
    )


def _replace_everywhere(name: str, original: Any, replacement: Any) -> None:
    """Replace a function of OpenMMLab also in modules that imported it by its name."""
    for module_name, module in list(sys.modules.items()):
        ours = module_name.partition('.')[0] in ('mmengine', 'mmaction', 'mmdet')
        if ours and vars(module).get(name) is original:
            setattr(module, name, replacement)


def _read_weights_only() -> None:
    """MMEngine leaves it to PyTorch how a file is read; one from a URL may execute what it likes.

    Then nothing names the file that is broken, and a resumed training executes ``meta.config``.
    """
    from mmengine.runner import checkpoint

    from .checkpoints import reading

    class WeightsOnly(types.ModuleType):
        load = staticmethod(functools.partial(torch.load, weights_only=True))

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    checkpoint.torch = WeightsOnly('torch')
    checkpoint.load_url = functools.partial(checkpoint.load_url, weights_only=True)

    @replaces(checkpoint.CheckpointLoader, 'load_checkpoint')
    def load_checkpoint(
        original: Callable, filename: str, map_location: Any = None, logger: Any = 'current'
    ) -> Any:
        with reading.naming(filename):
            content = original(filename, map_location, logger)
        reading.check_content(filename, content)
        reading.disarm(content)
        return content


def _report_loading() -> None:
    """MMEngine puts arrays, integers and complex numbers into weights or leaves them out without a
    word, does not say which file does not fit, and prints thousands of keys."""
    from mmengine.infer import BaseInferencer
    from mmengine.runner import FlexibleRunner, Runner, checkpoint

    from .checkpoints import loading

    original = checkpoint.load_state_dict
    if hasattr(original, '__wrapped__'):
        return
    _replace_everywhere('load_state_dict', original, loading.report_loading(original))

    load_checkpoint = checkpoint.load_checkpoint
    for owner in (checkpoint, Runner, FlexibleRunner):

        @replaces(owner, 'load_checkpoint')
        def named(original: Callable, *args: Any, **kwargs: Any) -> Any:
            call = inspect.signature(original).bind(*args, **kwargs)
            with loading.naming_file(call.arguments['filename']):
                return original(*args, **kwargs)

    _replace_everywhere('load_checkpoint', load_checkpoint, checkpoint.load_checkpoint)

    @replaces(BaseInferencer, '_init_model')
    def init_model(
        original: Callable, self: Any, cfg: Any, weights: str | None, device: str = 'cpu'
    ) -> Any:
        if not cfg:
            raise ValueError(
                f'weights={weights!r}: the config inside a checkpoint is not executed; name the '
                "model's config file (model=...)"
            )
        with loading.naming_file(str(weights)):
            return original(self, cfg, weights, device)


def _resume_what_is_whole() -> None:
    """MMEngine resumes from whatever a note names, be it cut off or gone; see ``checkpoints``."""
    from mmengine.runner import FlexibleRunner, Runner, checkpoint

    from .checkpoints import loading, reading, resuming

    for runner in (Runner, FlexibleRunner):

        @replaces(runner, 'resume')
        def resume(original: Callable, self: Any, filename: str, *args: Any, **kwargs: Any) -> None:
            if os.path.isfile(filename):
                reading.read_progress(filename)
            with loading.naming_file(filename), resuming.naming_state(filename):
                original(self, filename, *args, **kwargs)
            resuming.distrust(self)

    find = checkpoint.find_latest_checkpoint
    _replace_everywhere('find_latest_checkpoint', find, resuming.newest_checkpoint)


def _write_whole_files() -> None:
    """MMEngine removes old checkpoints before it writes the new one, piece by piece: killed
    meanwhile, a training with ``max_keep_ckpts=1`` has none."""
    from mmengine.fileio import LocalBackend
    from mmengine.hooks import CheckpointHook

    @replaces(LocalBackend, 'put')
    def put_whole(put: Callable, self: Any, obj: bytes, filepath: str | Path) -> None:
        path = os.path.realpath(filepath)
        if os.path.exists(path) and not os.path.isfile(path):  # a device
            put(self, obj, filepath)
            return
        part = f'{path}.part'
        put(self, obj, part)
        os.replace(part, path)

    @replaces(CheckpointHook, 'after_val_epoch')
    def compare(after: Callable, self: Any, runner: Any, metrics: dict) -> None:
        for key in self.key_indicators if self.save_best and metrics else ():
            if key not in ('auto', *metrics):
                raise ValueError(
                    f'default_hooks.checkpoint.save_best={key!r}: expected one of the metrics '
                    f'{list(metrics)}'
                )
        after(self, runner, metrics)

    @replaces(CheckpointHook, '_save_checkpoint_with_step')
    @replaces(CheckpointHook, '_save_best_checkpoint')
    def save_first(save: Callable, self: Any, *args: Any, **kwargs: Any) -> None:
        if not hasattr(self, 'file_backend'):  # nothing is trained, and nothing saved
            save(self, *args, **kwargs)
            return
        backend, removed = self.file_backend, []

        class Later:
            def __getattr__(self, name: str) -> Any:
                if name not in ('remove', 'rmtree'):
                    return getattr(backend, name)
                return lambda path: removed.append((getattr(backend, name), path))

        self.file_backend = Later()
        try:
            save(self, *args, **kwargs)
        finally:
            self.file_backend = backend
        best = getattr(self, 'best_ckpt_path_dict', {}).values()
        new = {self.last_ckpt, getattr(self, 'best_ckpt_path', None), *best}
        for remove, path in removed:
            if path not in new:  # names need not differ
                remove(path)
