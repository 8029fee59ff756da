# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""CUDAGraphHook puts graphs in the place of a backbone's forward while it trains."""

from types import SimpleNamespace

import pytest
import torch
from mmaction.registry import HOOKS
from mmengine.hooks import Hook

from vared2_mmaction.deploy.training_graphs import TrainingGraphs
from vared2_mmaction.engine import CUDAGraphHook
from vared2_mmaction.engine.network import network_of

from .training import VARIED, config, train

HOOK = {'type': 'CUDAGraphHook'}


@HOOKS.register_module()
class ForwardNoter(Hook):
    """Notes what each step's backbone runs."""

    priority = 'LOWEST'

    def before_train(self, runner):
        self.seen = set()

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen.add(type(network_of(runner).backbone.__dict__.get('forward')))


def seen(training):
    (noter,) = (hook for hook in training.runner.hooks if isinstance(hook, ForwardNoter))
    return noter.seen


@HOOKS.register_module()
class GraphsAnyway(CUDAGraphHook):
    """Believes in a GPU; inputs on a CPU run as ever."""

    def before_train(self, runner):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, 'is_available', lambda: True)
            super().before_train(runner)


def test_graphs_for_the_time_of_training(videos, tmp_path):
    seed = {'seed': 0}
    plain = train(config(videos, tmp_path / 'plain', [VARIED], randomness=seed))
    hooks = [VARIED, {'type': 'GraphsAnyway'}, {'type': 'ForwardNoter'}]
    graphs = train(config(videos, tmp_path / 'graphs', hooks, randomness=seed))
    assert seen(graphs) == {TrainingGraphs}
    assert 'forward' not in network_of(graphs.runner).backbone.__dict__
    for own, other in zip(graphs.seen, plain.seen, strict=True):
        assert all(map(torch.equal, own, other))


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_it_says_so(videos, tmp_path):
    training = train(config(videos, tmp_path, [HOOK, {'type': 'ForwardNoter'}]))
    assert 'CUDAGraphHook: there is no GPU; training runs as ever' in training.log
    assert seen(training) == {type(None)}


def test_a_compiled_backbone_is_left_alone():
    logged: list[str] = []
    model = torch.nn.Sequential()
    model.backbone = torch.nn.Identity()
    logger = SimpleNamespace(info=logged.append)
    runner = SimpleNamespace(model=model, cfg={'compile': True}, logger=logger)
    HOOKS.build({'type': 'GraphsAnyway'}).before_train(runner)
    assert 'forward' not in model.backbone.__dict__
    assert logged == ['CUDAGraphHook: the backbone is compiled already; nothing to do']
