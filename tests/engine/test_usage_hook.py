# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What the usage hook writes and warns of, in trainings by MMEngine's Runner on video files."""

from types import SimpleNamespace

import pytest
import torch
from mmaction.registry import HOOKS
from mmaction.utils import register_all_modules
from mmengine.hooks import Hook
from torch import multiprocessing, nn

from commands.cli import leave_process_group
from vared2_mmaction.engine import PolicyUsageHook
from vared2_mmaction.engine.network import network_of
from vared2_mmaction.engine.usage import Usage, shorten
from vared2_mmaction.models import SoftModulationGateNeck, dynamic_layers

from .training import BATCH, CLOSED, OPEN, STEPS, VARIED, config, train

USAGE = {'type': 'PolicyUsageHook'}
NAME = 'backbone.layer{}.0.conv{}.conv.conv_{}'
LAYERS = [NAME.format(s, c, d) for s in (1, 2, 3, 4) for c in (1, 2) for d in 'st']
SHORT = LAYERS[-3:]  # two frames of output, and so two temporal options


@pytest.fixture(scope='module')
def varied(videos, tmp_path_factory):
    """Two epochs of gates that answer each clip and layer differently, with validation."""
    register_all_modules()
    torch.manual_seed(0)
    schedule = {'type': 'BudgetScheduleHook'}
    changes = {'train_cfg__val_begin': 1, 'train_cfg__val_interval': 1}
    work_dir = tmp_path_factory.mktemp('varied')
    return train(config(videos, work_dir, [USAGE, schedule, VARIED], **changes))


def answers(training, start, stop):
    """Policies (clips, layers, 2) and ratios of the steps from start to stop, as the head saw."""
    policies, ratios = zip(*training.seen[start:stop], strict=True)
    return torch.cat(policies), torch.cat(ratios)


def test_shares_and_compute_of_every_interval(varied):
    intervals = {2: (0, 2), 3: (2, 3), 5: (3, 5), 6: (5, 6)}  # every 2 of an epoch's 3 steps
    assert list(varied.usage) == list(intervals)
    for step, (start, stop) in intervals.items():
        written = varied.usage[step]
        policy, ratio = answers(varied, start, stop)
        expected = {
            f'usage/compute_ratio_{name}': pytest.approx(statistic.item())
            for name, statistic in (
                ('mean', ratio.mean()),
                ('min', ratio.min()),
                ('max', ratio.max()),
            )
        }
        for column, dimension in enumerate(('channel', 'temporal')):
            for option in range(3):
                shares = (policy[..., column] == option).double().mean(0)
                for layer, share in zip(LAYERS, shares.tolist(), strict=True):
                    if (dimension, option) != ('temporal', 2) or layer not in SHORT:
                        expected[f'usage/{layer}/{dimension}_{option}'] = pytest.approx(share)
                expected[f'usage/{dimension}_{option}'] = pytest.approx(shares.mean().item())
        assert written == expected
    assert len({tuple(line.values()) for line in varied.usage.values()}) == len(intervals)


def test_loss_terms_are_written_at_the_same_steps(varied):
    terms = {line['step']: line for line in varied.lines if 'loss' in line}
    assert list(terms) == list(varied.usage)
    for line in terms.values():
        assert line['loss'] == pytest.approx(line['loss_cls'] + line['loss_budget'])
        assert line['grad_norm'] > 0
        assert 0 < line['compute_ratio'] <= 1


def test_usage_goes_neither_to_the_console_nor_into_checkpoints(varied):
    assert 'loss_budget' in varied.log
    assert 'usage/' not in varied.log
    assert not any('usage/' in key for key in varied.runner.message_hub.log_scalars)


def test_exactly_the_layers_that_gave_one_answer_are_named_once_an_epoch(varied):
    assert len(varied.warnings) == 2
    for epoch, warning in enumerate(varied.warnings):
        policy, _ = answers(varied, epoch * STEPS, (epoch + 1) * STEPS)
        same = (policy == policy[:1]).all(0).all(1).tolist()
        closed = [layer for layer, all_same in zip(LAYERS, same, strict=True) if all_same]
        assert closed == LAYERS[4:8] + LAYERS[11:12]
        said = f'they gave the same answer for all {STEPS * BATCH} clips of iterations'
        iterations = f'{epoch * STEPS + 1} to {(epoch + 1) * STEPS}'
        named = f'p_c=2, p_t=2 at backbone.layer2.*, {LAYERS[11]}'
        assert warning.endswith(f': 5 of 16 gates are stuck: {said} {iterations}: {named}')


def test_nothing_listens_after_training(varied):
    model = network_of(varied.runner)
    layers = dynamic_layers(model).values()
    assert not any(module._forward_hooks for module in (model.neck, *layers))


@pytest.fixture(scope='module')
def by_iteration(videos, tmp_path_factory):
    """Five iterations of closed gates on four frames, without channel options."""
    register_all_modules()
    hooks = [{**USAGE, 'interval': 3, 'period': 2, 'per_layer': False}, CLOSED]
    changes = {
        'train_cfg': {'_delete_': True, 'type': 'IterBasedTrainLoop', 'max_iters': 5},
        'train_dataloader__sampler': {'type': 'InfiniteSampler'},
        'model__backbone__dynamic__channel': 1,
        'log_processor__by_epoch': False,
    }
    cfg = config(videos, tmp_path_factory.mktemp('iterations'), hooks, **changes)
    cfg.train_dataloader.dataset.pipeline[0].transforms[1].clip_len = 4
    return train(cfg)


def test_an_iteration_based_loop_has_intervals_and_periods(by_iteration):
    assert list(by_iteration.usage) == [3, 5]
    for line in by_iteration.usage.values():
        assert line['usage/compute_ratio_max'] < 1
        names = ('usage/temporal_0', 'usage/temporal_1', 'usage/temporal_2')
        assert set(line) - {f'usage/compute_ratio_{k}' for k in ('mean', 'min', 'max')} == set(
            names
        )
        assert sum(line[name] for name in names) == pytest.approx(1)
    assert len(by_iteration.warnings) == 2  # after 2 and 4 iterations
    for warning, iterations in zip(by_iteration.warnings, ('1 to 2', '3 to 4'), strict=True):
        assert f'all 4 clips of iterations {iterations}: ' in warning


def test_layers_with_one_option_are_not_stuck(by_iteration):
    """One frame of output leaves a layer without channel options nothing to choose."""
    for warning in by_iteration.warnings:
        assert '13 of 13 gates are stuck' in warning
        assert not any(layer in warning for layer in SHORT)


def test_open_gates_are_stuck_once_the_budget_loss_has_its_weight(videos, tmp_path):
    hooks = [USAGE, {'type': 'BudgetScheduleHook', 'begin': 1, 'ramp': 1}, OPEN]
    changes = {'train_cfg__max_epochs': 4, 'train_dataloader__dataset__indices': 2}
    training = train(config(videos, tmp_path, hooks, **changes))
    assert [line['usage/channel_0'] for line in training.usage.values()] == [1.0] * 4
    first, second = training.warnings  # of the last two epochs
    assert 'iterations 3 to 3: p_c=0, p_t=0 (all computed) at backbone.*' in first
    assert 'iterations 4 to 4' in second


def test_frozen_gates_are_not_stuck(videos, tmp_path):
    hooks = [USAGE, {'type': 'FreezeGatesHook', 'begin': 2}, CLOSED]
    changes = {'train_cfg__max_epochs': 4, 'train_dataloader__dataset__indices': 2}
    training = train(config(videos, tmp_path, hooks, **changes))
    assert [line['usage/channel_2'] for line in training.usage.values()] == [1.0] * 4
    assert len(training.warnings) == 2
    for epoch, warning in enumerate(training.warnings, start=1):
        assert f'iterations {epoch} to {epoch}: p_c=2' in warning


def test_tensorboard_shows_the_same(videos, tmp_path):
    pytest.importorskip('tensorboard', reason='TensorBoard is an optional installation')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = config(videos, tmp_path, [USAGE, VARIED], train_cfg__max_epochs=1)
    cfg.visualizer.vis_backends.append({'type': 'TensorboardVisBackend'})
    training = train(cfg)
    (folder,) = tmp_path.glob('*/vis_data')
    events = EventAccumulator(str(folder)).Reload()
    shown: dict = {}
    for tag in events.Tags()['scalars']:
        for event in events.Scalars(tag) if tag.startswith('usage/') else ():
            shown.setdefault(event.step, {})[tag] = pytest.approx(event.value, rel=1e-6)
    assert training.usage == shown
    assert list(shown) == [2, 3]
    assert {'loss_cls', 'loss_budget', 'grad_norm'} <= set(events.Tags()['scalars'])


@HOOKS.register_module()
class GateSpoiler(Hook):
    """Makes a gate not finite after the first step."""

    def after_train_iter(self, runner, *args, **kwargs):
        layer = dynamic_layers(network_of(runner))[LAYERS[6]]
        layer.gate.fc2.weight.data.fill_(float('nan'))


def test_a_gate_that_is_not_finite_ends_the_training_with_its_name(videos, tmp_path):
    cfg = config(videos, tmp_path, [USAGE, OPEN, {'type': 'GateSpoiler'}])
    with pytest.raises(FloatingPointError, match=rf'^{LAYERS[6]}: the weights of the gate'):
        train(cfg)
    (log,) = tmp_path.glob('*/*.log')
    assert 'Epoch(train)' not in log.read_text()  # it was the second step


def part_of_a_model(neck=True):
    return SimpleNamespace(
        model=nn.Sequential(*([SoftModulationGateNeck()] if neck else [])),
        hooks=[],
        train_dataloader=[0],
    )


def test_mistakes_are_named():
    for mistake in ({'interval': 0}, {'period': -1}, {'interval': 2.0}):
        (key,) = mistake
        with pytest.raises(ValueError, match=f'{key}={mistake[key]}: expected a number of iter'):
            PolicyUsageHook(**mistake)
    with pytest.raises(ValueError, match='interval is missing: the runner has no LoggerHook'):
        PolicyUsageHook().before_train(part_of_a_model())
    with pytest.raises(ValueError, match='Sequential has 0 SoftModulationGateNecks; expected one'):
        PolicyUsageHook(interval=1).before_train(part_of_a_model(neck=False))


def test_names_are_shortened_to_what_names_no_other_layer():
    assert shorten(LAYERS, LAYERS) == ['backbone.*']
    assert shorten(LAYERS[1:], LAYERS) == [
        LAYERS[1],
        'backbone.layer1.0.conv2.*',
        *(f'backbone.layer{stage}.*' for stage in (2, 3, 4)),
    ]
    assert shorten(['b.x'], ['a.x', 'b.x']) == ['b.x']  # one name stays as it is
    assert shorten([], LAYERS) == []


def test_usage_adds_up():
    policy, ratio = torch.randint(3, (10, 4, 2)), torch.rand(10, dtype=torch.float64)
    whole = Usage.count(policy, ratio)
    parts = Usage.none(4) + Usage.count(policy[:3], ratio[:3]) + Usage.count(policy[3:], ratio[3:])
    options = dict.fromkeys('abcd', (3, 3))
    assert parts.clips == whole.clips == 10
    assert parts.scalars(options, True) == pytest.approx(whole.scalars(options, True))


def _count_a_part(rank, rendezvous, policy, ratio):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{rendezvous}', rank=rank, world_size=2
    )
    mine = slice(None, 3) if rank == 0 else slice(3, None)
    usage = Usage.count(policy[mine], ratio[mine]).over_processes()
    whole = Usage.count(policy, ratio)
    assert torch.equal(usage.counts, whole.counts)
    assert usage.clips == len(policy)
    options = dict.fromkeys('abcd', (3, 3))
    assert usage.scalars(options, True) == pytest.approx(whole.scalars(options, True))
    leave_process_group()


def test_clips_of_all_processes_count(tmp_path):
    policy, ratio = torch.randint(3, (10, 4, 2)), torch.rand(10, dtype=torch.float64)
    arguments = (tmp_path / 'rendezvous', policy, ratio)
    multiprocessing.start_processes(_count_a_part, arguments, nprocs=2, start_method='fork')
