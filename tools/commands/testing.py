# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""How commands test a network: its metrics, training clips read as those of the test, and an
optimised copy in its place."""

import gc
from typing import Any

import numpy as np
import torch
from mmaction.datasets import VideoDataset
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.data import DataLoader, Subset

from vared2_mmaction.apis.optimizing import try_to_optimize
from vared2_mmaction.datasets.pipelines import first_dataset, type_name
from vared2_mmaction.executors import BACKENDS, ExecutedConv
from vared2_mmaction.models import dynamic_layers, force_policies
from vared2_mmaction.models.wrapped import is_wrapper

_RUN_A_COPY = (DataParallel, DistributedDataParallel, BaseTTAModel)
"""Modules whose tests call what is their ``module`` then."""
_OF_REPEATS = ('num_repeats', 'sample_once')
"""What ``RepeatAugDataset``, which reads a video several times, has on top of ``VideoDataset``."""


def metrics_of(cfg: Config, split: str = 'test') -> list[dict]:
    """Metrics of a split of a config, which names one, a list, or an evaluator of them.

    Raises:
        ValueError: If it names none.
    """
    evaluator = cfg.get(f'{split}_evaluator')
    metrics = evaluator.get('metrics', evaluator) if isinstance(evaluator, dict) else evaluator
    if not metrics:
        raise ValueError(f'{split}_evaluator={evaluator!r}: expected a metric, or a list of them')
    return list(metrics) if isinstance(metrics, list | tuple) else [metrics]


def set_metrics(cfg: Config, metrics: list[dict]) -> None:
    """Replace the metrics of the test of a config; the class of its evaluator stays."""
    evaluator = cfg.test_evaluator
    inside = isinstance(evaluator, dict) and 'metrics' in evaluator
    cfg.test_evaluator = {**evaluator, 'metrics': metrics} if inside else metrics


def training_clips(cfg: Config, videos: int | None = None) -> DataLoader:
    """Batches of training videos, read and collated as those of the test; the same every time.

    Args:
        cfg: Config of a run.
        videos: How many, evenly spaced; None takes all.

    Raises:
        ValueError: If the data set of the test has no pipeline.
    """
    init_default_scope(cfg.get('default_scope') or 'mmaction')
    pipeline = first_dataset(cfg.test_dataloader.dataset).get('pipeline')
    if pipeline is None:
        raise ValueError('test_dataloader.dataset: expected one with a pipeline, which reads clips')
    dataset = DATASETS.build(_read_by(pipeline, cfg.train_dataloader.dataset))
    number = len(dataset) if videos is None else min(videos, len(dataset))
    chosen = np.linspace(0, len(dataset) - 1, number).round().astype(int)
    wanted = {**cfg.test_dataloader, 'dataset': Subset(dataset, chosen.tolist())}
    wanted['sampler'] = {'type': 'DefaultSampler', 'shuffle': False}
    return Runner.build_dataloader(wanted)


def _read_by(pipeline: list, dataset: dict) -> dict:
    """The config of a data set, in wrappers or not, that is read by another pipeline, once."""
    if 'datasets' in dataset:
        return {**dataset, 'datasets': [_read_by(pipeline, part) for part in dataset['datasets']]}
    if 'pipeline' not in dataset and 'dataset' in dataset:
        return _read_by(pipeline, dataset['dataset'])
    if type_name(dataset.get('type')) == 'RepeatAugDataset':
        dataset = {key: value for key, value in dataset.items() if key not in _OF_REPEATS}
        dataset['type'] = VideoDataset
    return {**dataset, 'pipeline': pipeline, 'test_mode': True}


def _executes_the_dearest(module: nn.Module) -> bool:
    if not isinstance(module, ExecutedConv) or not module.is_dynamic:
        return False
    backend = BACKENDS.get(module.executed_by)
    return backend is not None and not backend.by_clip


@torch.no_grad()
def dearest_ratio(model: nn.Module, batch: Any) -> float:
    """Compute ratio of the dearest options in use, the same for every clip.

    Args:
        model: A dynamic recognizer.
        batch: What its ``test_step`` takes.
    """
    in_use = [layer.in_use for layer in dynamic_layers(model).values()]
    dearest = torch.tensor([[channel[0], temporal[0]] for channel, temporal in in_use])
    was_training = model.training
    model.eval()  # does not return the module in stock recognizers
    try:
        with force_policies(model, dearest[None]):
            samples = model.test_step(batch)  # type: ignore[operator]
    finally:
        model.train(was_training)
    return sum(sample.compute_ratio for sample in samples) / len(samples)


class OptimizeHook(Hook):
    """Lets a test run an optimised copy of the network, made of the weights that are tested.

    The copy takes the network's place inside of what wraps that: ``DistributedDataParallel``, which
    accepts no network without trainable parameters, and MMEngine's test-time augmentation.
    """

    priority = 'LOWEST'  # after those that load, average or wrap

    def before_test_epoch(self, runner: Runner) -> None:
        """Put the copy in the network's place."""
        owner, name = runner, 'model'
        while isinstance(getattr(owner, name), _RUN_A_COPY):
            owner, name = getattr(owner, name), 'module'
        network = getattr(owner, name)
        self._restore: Any = (owner, name, network)
        self._asks = False
        if runner.cfg.get('compile'):
            said = 'not optimised: compiled, as the config says (compile)'
        elif is_wrapper(network):
            said = f'not optimised: {type(network).__name__} wraps it'
        else:
            copy, said = try_to_optimize(network)
            setattr(owner, name, copy)
            self._asks = any(map(_executes_the_dearest, copy.modules()))
        runner.logger.info(said)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Say once what is executed, where that is not what is decided for each clip."""
        if self._asks and isinstance(data_batch['inputs'][0], Tensor):  # no augmented copies
            self._asks = False
            share = dearest_ratio(self._restore[-1], data_batch)
            runner.logger.info(
                f'executed: {share:.1%} of the static multiply-adds for every clip, by the dearest '
                'options in use; compute/ratio is what was decided'
            )

    def after_test_epoch(self, runner: Runner, metrics: Any = None) -> None:
        """Put the network back."""
        owner, name, network = self._restore
        setattr(owner, name, network)
        gc.collect()  # a CUDA graph is part of a cycle with its network
