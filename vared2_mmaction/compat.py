# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Known defects of the OpenMMLab releases, mended when this package is imported.

The only place that knows them, with ``compat_checkpoints``. Each function names the defect; each
can go when it is gone.
"""

import datetime
import importlib
import os
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from . import compat_checkpoints
from .errors import FileError
from .replacing import replaces


def apply() -> None:
    """Mend what is broken; must run before ``mmaction.models`` is imported."""
    _leave_out_multimodal_models()
    _provide_missing_localizer()
    _open_videos_by_path()
    _name_undecodable_videos()
    _draw_predictions()
    _start_distributed_on_cpu()
    _return_data_samples()
    _keep_results_of_processes_apart()
    _restore_names_of_numpy()
    _refuse_to_fold_dynamic_layers()
    compat_checkpoints.apply()


def _refuse_to_fold_dynamic_layers() -> None:
    """mmcv's fusion would give cheap operations other maps than those they learned to read."""

    @replaces(importlib.import_module('mmcv.cnn.utils.fuse_conv_bn'), '_fuse_conv_bn')
    def fuse(original: Callable, conv: Any, bn: Any) -> Any:
        if hasattr(conv, 'gate'):
            raise ValueError(f'{conv.layer_name}: fuse_conv_bn does not know it: use optimize')
        return original(conv, bn)


def _leave_out_multimodal_models() -> None:
    """mmaction2's multimodal models import what later releases of transformers lack; it then has to
    do without them, as it does where there is no transformers at all."""
    try:
        from transformers.modeling_utils import apply_chunking_to_forward  # noqa: F401
    except ImportError:
        from mmaction.utils import dependency

        dependency.WITH_MULTIMODAL = False


def _provide_missing_localizer() -> None:
    """The mmaction2 1.2.0 wheel lacks mmaction/models/localizers/drn, which it imports."""
    import mmaction

    if (Path(mmaction.__file__).parent / 'models' / 'localizers' / 'drn').exists():
        return

    class DRN:
        """Stands for the localizer that the release lacks."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise ImportError(
                'DRN is missing from the installed mmaction2 release; install mmaction2 from its '
                'repository to use it'
            )

    name = 'mmaction.models.localizers.drn'
    parent, module = types.ModuleType(name), types.ModuleType(f'{name}.drn')
    parent.__path__ = []
    module.DRN = DRN  # type: ignore[attr-defined]
    parent.drn = module  # type: ignore[attr-defined]
    sys.modules.setdefault(name, parent)
    sys.modules.setdefault(f'{name}.drn', module)


def _open_videos_by_path() -> None:
    """DecordInit hands decord the bytes of a file; those of a cut-off AVI crash the process."""
    from mmaction.datasets.transforms.loading import DecordInit

    @replaces(DecordInit, '_get_video_reader')
    def open_video(original: Callable, self: Any, filename: str) -> object:
        if self.io_backend != 'disk':
            return original(self, filename)
        import decord

        if not os.path.isfile(filename) and not os.path.splitext(filename)[1]:
            filename += '.mp4'  # lists of videos may leave it out
        if not os.path.isfile(filename):
            raise FileNotFoundError('no such file')
        return decord.VideoReader(filename, num_threads=self.num_threads)


def _name_undecodable_videos() -> None:
    """The error of a decoder does not say which video of the data set is broken."""
    from mmaction.datasets.transforms import loading

    for library in ('Decord', 'OpenCV', 'PyAV', 'PIMS'):
        _name_video(getattr(loading, f'{library}Init'), library, 'opened')
        _name_video(getattr(loading, f'{library}Decode'), library, 'decoded')
    _name_video(loading.PyAVDecodeMotionVector, 'PyAV', 'decoded')

    @replaces(loading.RawFrameDecode, 'transform')
    def name_frames(original: Callable, self: Any, results: dict) -> dict:
        try:
            results = original(self, results)
            if any(frame.dtype == object for frame in results['imgs']):  # of optical flow
                raise ValueError('there is no image')
            return results
        except (ImportError, FileNotFoundError, PermissionError, KeyError, NotImplementedError):
            raise  # of the pipeline, or with the name of the file
        except Exception as error:
            reason = str(error).strip().partition('\n')[0]
            raise FileError(
                f'frames of {str(results["frame_dir"])!r} cannot be decoded: expected images '
                f'({reason})'
            ) from error


def _name_video(transform: Any, library: str, step: str) -> None:
    @replaces(transform, 'transform')
    def named(original: Callable, self: Any, results: dict) -> dict:
        try:
            results = original(self, results)
            if library == 'OpenCV' and results['total_frames'] < 1:  # it opens anything
                raise ValueError('there is no frame in it')
            return results
        except ImportError:
            raise
        except Exception as error:
            reason = str(error).partition('\n')[0]  # decord appends its stack
            if 'must exactly match' in reason:
                reason += '; decord fails on some widths up to 72 pixels, 48 and 72 among them'
            raise FileError(
                f'video {str(results.get("filename", "<array>"))!r} cannot be {step}: expected a '
                f'video file that {library.replace("Decord", "decord")} can decode ({reason})'
            ) from error


def _draw_predictions() -> None:
    """VisualizationHook (test.py --show) fails on any clip and finds no prediction to write.

    It permutes the five dimensions (views, C, T, H, W) as if they were four, hands ``show`` to a
    visualizer that calls it ``show_frames``, and the visualizer looks for ``pred_labels`` where
    heads write ``pred_label``.
    """
    from mmaction.engine.hooks.visualization_hook import VisualizationHook

    def draw_samples(
        self: Any, batch_idx: int, data_batch: dict, data_samples: Sequence[Any], step: int = 0
    ) -> None:
        if not self.enable:
            return
        if batch_idx == 0 or not hasattr(self, '_batch_size'):
            self._batch_size = len(data_samples)  # the last batch may be smaller
        first = batch_idx * self._batch_size
        for number, sample in enumerate(data_samples, start=first):
            if number % self.interval == 0:
                _draw_sample(self, data_batch['inputs'][number - first], sample, number, step)

    VisualizationHook._draw_samples = draw_samples


def _draw_sample(hook: Any, inputs: torch.Tensor, sample: Any, number: int, step: int) -> None:
    """Draws the first view of one sample; ``inputs`` is (views, C, T, H, W) or (T, C, H, W)."""
    from mmengine.structures import LabelData

    frames = inputs[0].transpose(0, 1) if inputs.ndim == 5 else inputs
    if frames.ndim != 4 or frames.shape[1] != 3:
        raise ValueError(
            f'only RGB clips can be drawn, of shape (views, 3, T, H, W) or (T, 3, H, W): '
            f'sample {number} has {tuple(inputs.shape)}'
        )
    drawn = sample.new()
    if 'gt_label' in drawn:
        drawn.gt_labels = drawn.gt_label
    if 'pred_label' in drawn:
        drawn.pred_labels = LabelData(item=drawn.pred_label, score=drawn.pred_score)
    name = os.path.basename(sample.get('filename') or sample.get('frame_dir') or str(number))
    options = {key: value for key, value in hook.draw_args.items() if key != 'show'}
    wait_time = options.pop('wait_time', 0)
    if hook.out_dir is not None:
        options['out_path'] = os.path.join(hook.out_dir, f'{name}_{step}')
    video = frames.permute(0, 2, 3, 1).cpu().numpy().astype('uint8')
    images = hook._visualizer.add_datasample(
        name, video=video, data_sample=drawn, step=step, **options
    )
    if hook.show and images is not None:  # other ranks draw nothing
        for index, image in enumerate(images, start=1):
            pause = wait_time if index == len(images) else 1 / options.get('fps', 4)
            hook._visualizer.show(image, f'frame {index} of {name}', pause)


def _start_distributed_on_cpu() -> None:
    """MMEngine selects a CUDA device for every process, also where there is none."""
    from mmengine.device import is_cuda_available
    from mmengine.dist import utils
    from mmengine.model import MMDistributedDataParallel

    @replaces(utils, '_init_dist_pytorch')
    def start(original: Callable, backend: str, init_backend: str = 'torch', **kwargs: Any) -> None:
        accelerated = is_cuda_available() or any(
            getattr(utils, f'is_{device}_available')() for device in ('mlu', 'npu', 'musa')
        )
        if accelerated or init_backend != 'torch':
            original(backend, init_backend=init_backend, **kwargs)
        elif backend != 'gloo':
            raise ValueError(
                f'env_cfg.dist_cfg.backend={backend!r} needs a GPU, and none is available; on CPU '
                'use env_cfg.dist_cfg.backend=gloo'
            )
        else:
            torch.distributed.init_process_group(backend=backend, **kwargs)

    @replaces(MMDistributedDataParallel, '__init__')
    def wrap(
        original: Callable, self: Any, module: torch.nn.Module, *args: Any, **kwargs: Any
    ) -> None:
        if all(parameter.device.type == 'cpu' for parameter in module.parameters()):
            kwargs['device_ids'] = None
        original(self, module, *args, **kwargs)


def _return_data_samples() -> None:
    """MMAction2Inferencer documents return_datasamples, refuses it, and keeps scores only."""
    from mmaction.apis.inferencers import MMAction2Inferencer

    known = MMAction2Inferencer.postprocess_kwargs
    MMAction2Inferencer.postprocess_kwargs = known | {'return_datasamples'}

    @replaces(MMAction2Inferencer, 'postprocess')
    def postprocess(
        original: Callable,
        self: Any,
        preds: dict,
        visualization: Any = None,
        return_datasamples: bool = False,
        **kwargs: Any,
    ) -> dict:
        result = original(self, preds, visualization, **kwargs)
        if return_datasamples:
            result['predictions'] = [sample for (sample,) in preds['rec']]
        return result


def _keep_results_of_processes_apart() -> None:
    """AVAMetric's passing file, in the current folder, is named by the second alone: of two
    trainings side by side, one removes that of the other."""
    from mmaction.evaluation.metrics import ava_metric

    class Moment(datetime.datetime):
        def strftime(self, format: str) -> str:
            return f'{super().strftime(format)}_{os.getpid()}'

    ava_metric.datetime = Moment


_NEW_NAMES = {'Inf': 'inf', 'NAN': 'nan', 'in1d': 'isin', 'trapz': 'trapezoid'}
"""Of what NumPy 2 has under another name."""
_WITH_OLD_NAMES = (
    'datasets.transforms.pose_transforms',
    'evaluation.functional.accuracy',
    'evaluation.functional.ava_evaluation.metrics',
    'evaluation.metrics.multimodal_metric',
    'utils.misc',
)


class _NumpyWithOldNames(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        import numpy

        return getattr(numpy, name if hasattr(numpy, name) else _NEW_NAMES.get(name, name))


def _restore_names_of_numpy() -> None:
    """mmaction2 uses names that NumPy 2 lacks, as for the average precision of an AVA action that
    has no boxes; its modules get them, and nobody else."""
    for name in _WITH_OLD_NAMES:
        module: Any = importlib.import_module(f'mmaction.{name}')
        module.np = _NumpyWithOldNames('numpy')
