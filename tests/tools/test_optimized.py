# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Tools run an optimised copy of the network, say so, and answer what the network answers."""

import functools
import re
import types

import mmengine
import pytest
import torch
from mmaction.structures import ActionDataSample
from mmengine.config import Config
from mmengine.model import BaseTTAModel, MMDistributedDataParallel, revert_sync_batchnorm
from torch import nn

from commands.testing import OptimizeHook
from vared2_mmaction.apis import load_model, optimizing
from vared2_mmaction.apis.optimizing import try_to_optimize
from vared2_mmaction.executors import ExecutedConv

from ..networks import make_static, write_network, write_test_config

KINDS = ('Recognizer3D', 'Recognizer2D')


@pytest.fixture(scope='module')
def project(tmp_path_factory, videos):
    """For each kind, dynamic and static, the arguments CONFIG and CHECKPOINT."""
    folder = tmp_path_factory.mktemp('optimized')
    found = {}
    for kind in KINDS:
        config, checkpoint = write_network(folder, kind)
        for name in ('dynamic', 'static'):
            path = folder / f'{name}_{kind}.py'
            write_test_config(path, config, videos)
            found[kind, name] = str(path), checkpoint
        make_static(path)
    return found


def log(work_dir):
    (path,) = work_dir.rglob('*.log')
    return path.read_text()


@pytest.mark.parametrize('name', ['dynamic', 'static'])
@pytest.mark.parametrize('kind', KINDS)
def test_scores_and_policies_are_those_of_the_network(kind, name, project, tester, tmp_path):
    argv = project[kind, name]
    # MMEngine calls an experiment after the second: two within one would share a log.
    for how, flags in (('fast', []), ('slow', ['--no-optimize'])):
        named = ['--cfg-options', f'experiment_name={how}_{kind}_{name}']
        tester.main([*argv, '--dump', f'{how}.pkl', '--work-dir', how, *flags, *named])
    assert log(tmp_path / 'fast').count('executed: ') == 1
    assert 'optimised' not in log(tmp_path / 'fast')
    assert 'executed: ' not in log(tmp_path / 'slow')
    fast, slow = map(mmengine.load, ('fast.pkl', 'slow.pkl'))
    assert len(fast) == len(slow) > 1
    for found, expected in zip(fast, slow, strict=True):
        torch.testing.assert_close(found['pred_score'], expected['pred_score'], rtol=0, atol=1e-4)
        assert ('policy' in found) == (name == 'dynamic')
        if name == 'dynamic':
            assert torch.equal(found['policy'], expected['policy'])
            assert found['compute_ratio'] == pytest.approx(expected['compute_ratio'])
            assert found['overhead_gmacs'] == pytest.approx(expected['overhead_gmacs'])


def test_what_cannot_be_optimised_is_tested_as_it_is(project, tester, tmp_path, monkeypatch):
    argv = project['Recognizer3D', 'dynamic']

    def fail(model):
        raise TypeError('some module\ncannot be copied')

    monkeypatch.setattr(optimizing, 'optimize', fail)
    tester.main([*argv, '--dump', 'fast.pkl', '--work-dir', 'fast'])
    assert 'not optimised: TypeError: some module\n' in log(tmp_path / 'fast')
    tester.main([*argv, '--dump', 'slow.pkl', '--work-dir', 'slow', '--no-optimize'])
    for found, expected in zip(mmengine.load('fast.pkl'), mmengine.load('slow.pkl'), strict=True):
        assert torch.equal(found['pred_score'], expected['pred_score'])


def test_a_test_says_what_is_executed_for_every_clip(project, tester, tmp_path, monkeypatch):
    """Where an executor computes the dearest options in use, as on GPUs; here interpreted."""
    config, checkpoint = project['Recognizer3D', 'dynamic']
    content = torch.load(checkpoint)
    for key, value in content['state_dict'].items():
        if key.endswith('channel_options.used'):
            value[0] = False
    torch.save(content, 'pruned.pth')
    as_on_gpus = functools.partial(optimizing.optimize, executor='cuda')
    monkeypatch.setattr(optimizing, 'optimize', as_on_gpus)
    for name, weights in (('whole', checkpoint), ('pruned', 'pruned.pth')):
        named = ['--cfg-options', f'experiment_name=executes_{name}']
        named += ['test_dataloader.dataset.indices=1']  # the interpreter takes seconds for a video
        tester.main([config, weights, '--work-dir', name, '--dump', f'{name}.pkl', *named])
        first, second = re.findall('executed: (.*)', log(tmp_path / name))
        assert 'by cuda (cuDNN and Triton)' in first
        share = float(second.partition('%')[0]) / 100
        decided = [sample['compute_ratio'] for sample in mmengine.load(f'{name}.pkl')]
        assert max(decided) <= share + 1e-3
        if name == 'whole':
            assert share == 1
            continue
        assert share < 0.95


class Views(BaseTTAModel):
    """Scores of a video, mean over its augmented copies."""

    def merge_preds(self, data_samples_list):
        merged = []
        for samples in data_samples_list:
            scores = torch.stack([sample.pred_score for sample in samples]).mean(0)
            merged.append(samples[0].set_pred_score(scores))
        return merged


class Runner:
    """What a hook sees of MMEngine's runner."""

    def __init__(self, model, **cfg):
        self.model, self.cfg, self.said = model, cfg, []
        self.logger = types.SimpleNamespace(info=self.said.append)


@pytest.fixture
def network(project):
    model, _ = load_model(Config.fromfile(project['Recognizer3D', 'dynamic'][0]))
    return revert_sync_batchnorm(model).eval()


@pytest.fixture
def alone(tmp_path):
    """A process group of one."""
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def is_optimised(model):
    return any(isinstance(module, ExecutedConv) for module in model.modules())


def test_the_copy_is_put_inside_of_wrappers_and_taken_out_again(network, alone):
    distributed = MMDistributedDataParallel(network)
    for model, depth in ((network, 0), (distributed, 1), (Views(distributed), 2)):
        runner, hook = Runner(model), OptimizeHook()
        hook.before_test_epoch(runner)
        (said,) = runner.said
        assert said.startswith('executed: ')
        assert is_optimised(runner.model)
        if depth:
            assert runner.model is model
        hook.after_test_epoch(runner)
        assert runner.model is model
        assert not is_optimised(runner.model)


def test_augmented_tests_give_the_same_scores(network):
    data = {
        'inputs': [[torch.randint(255, (1, 3, 8, 32, 32), dtype=torch.uint8)] for _ in range(2)],
        'data_samples': None,
    }
    data['data_samples'] = [[ActionDataSample()] for _ in range(2)]
    runner, hook = Runner(Views(network)), OptimizeHook()
    (expected,) = runner.model.test_step(data)
    hook.before_test_epoch(runner)
    (found,) = runner.model.test_step(data)
    torch.testing.assert_close(found.pred_score, expected.pred_score, rtol=0, atol=1e-4)


def test_what_is_not_optimised_says_why(network):
    class Averaged(torch.optim.swa_utils.AveragedModel):
        pass

    for model, cfg, why in (
        (network, {'compile': True}, 'not optimised: compiled, as the config says (compile)'),
        (Averaged(network), {}, 'not optimised: Averaged wraps it'),
    ):
        runner, hook = Runner(model, **cfg), OptimizeHook()
        hook.before_test_epoch(runner)
        assert runner.said == [why]
        assert runner.model is model
        hook.after_test_epoch(runner)
        assert runner.model is model


def test_modules_that_cannot_be_copied():
    class Held(nn.Conv3d):
        def __deepcopy__(self, memo):
            raise RuntimeError('holds a file')

    model = nn.Sequential(Held(3, 4, 1))
    assert try_to_optimize(model) == (model, 'not optimised: holds a file')
