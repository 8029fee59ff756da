# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""What is put into a network is compared with it, and what became of it is said in one line."""

import logging

import pytest
import torch
from mmaction.apis.inferencers import ActionRecogInferencer
from mmengine import runner
from mmengine.logging import MMLogger
from torch import nn

from vared2_mmaction.apis.weights import load_weights
from vared2_mmaction.checkpoints.loading import OtherNetworkError, whole_networks
from vared2_mmaction.checkpoints.reading import CheckpointError

from ..models.backbones import dynamic
from .files import content
from .hostile import calls

WRONG = {
    'ndarray': lambda value: value.numpy(),
    'list': lambda value: value.tolist(),
    'float': lambda value: float(value.sum()),
    'torch.int8': lambda value: value.to(torch.int8),
    'torch.int64': lambda value: value.long(),
    'torch.bool': lambda value: value > 0,
    'torch.complex64': lambda value: value.to(torch.complex64),
    'torch.qint8': lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))


@pytest.fixture
def save(tmp_path):
    def save(state, **more):
        path = str(tmp_path / 'some.pth')
        torch.save({'state_dict': state, **more} if more or 'plain' not in state else state, path)
        return path

    return save


@pytest.fixture
def logged(monkeypatch):
    """Levels and lines of the log."""
    lines = []
    monkeypatch.setattr(
        'vared2_mmaction.checkpoints.loading.print_log',
        lambda line, logger, level: lines.append((level, line)),
    )
    return lines


@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::UserWarning')
@pytest.mark.parametrize('key', ['0.weight', '1.running_var', '3.bias'])
@pytest.mark.parametrize('kind', WRONG)
def test_other_kinds_of_numbers_are_refused(kind, key, save):
    model = network()
    state = dict(network().state_dict())
    state[key] = WRONG[kind](state[key])
    path = save(state)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for load in (runner.load_checkpoint, load_weights):
        with pytest.raises(ValueError, match=rf'some\.pth.*{key}.*found .*{kind}') as caught:
            load(model, path)
        assert '\n' not in str(caught.value)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize('kind', [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_numbers_are_converted(kind, save, logged):
    model, state = network(), network().to(kind).state_dict()
    state['1.num_batches_tracked'] = torch.tensor(2.0)  # as averaging leaves it
    runner.load_checkpoint(model, save(state))
    assert logged == [(logging.INFO, '8 of 8 tensors of the network loaded')]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name].to(value.dtype), rtol=0, atol=0)


def test_a_dict_of_arrays_alone_is_refused(tmp_path):
    path = str(tmp_path / 'some.pth')
    torch.save({key: value.numpy() for key, value in network().state_dict().items()}, path)
    with pytest.raises(CheckpointError, match=r'some\.pth: expected a tensor as 0\.weight, found'):
        runner.load_checkpoint(network(), path)


def test_what_does_not_fit_is_named(save, logged):
    state = dict(network().state_dict())
    state['3.weight'] = torch.zeros(5, 2)
    state['4.weight'] = torch.zeros(1)
    del state['0.bias'], state['1.num_batches_tracked']
    path = save(state)
    model = network()
    runner.load_checkpoint(model, path)
    ((level, line),) = logged
    assert level == logging.WARNING
    assert line == (
        '6 of 8 tensors of the network loaded; missing: 0.bias; mismatched: 3.weight of shape '
        '(2, 2), found (5, 2); unused: 4.weight'
    )
    with whole_networks(), pytest.raises(OtherNetworkError, match=r'some\.pth: .*3\.weight'):
        runner.load_checkpoint(model, path)
    with pytest.raises(ValueError, match=r'of another network: expected 3\.weight of shape'):
        load_weights(model, path)
    del state['3.weight']
    with pytest.raises(ValueError, match=r'expected 0\.bias of shape \(2,\), found none'):
        load_weights(model, save(state))
    with pytest.raises(RuntimeError, match='missing keys'):
        runner.load_checkpoint(model, path, strict=True)


def test_gates_are_counted(save, logged):
    backbone = dynamic('ResNet')
    state = {k: v for k, v in backbone.state_dict().items() if 'gate' not in k}
    state = {k: v for k, v in state.items() if '_options' not in k}
    number, wanted = (
        sum(not key.endswith(('num_batches_tracked', '_options.used')) for key in keys)
        for keys in (state, backbone.state_dict())
    )
    runner.load_checkpoint(backbone, save(state))
    ((_, line),) = logged
    assert line == (
        f'{number} of {wanted} tensors of the network loaded; {wanted - number} of gates and cheap '
        'operations are not in the file and stay as initialised'
    )
    found = load_weights(backbone, save(state))
    assert found.endswith(f'some.pth, {number} tensors, which lacks gates: they are as initialised')


def test_a_backbone_refuses_arrays_by_itself(save):
    backbone = dynamic('ResNet')
    state = {key: value.numpy() for key, value in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=r'expected a tensor as conv1\.conv\.weight, found a nda'):
        backbone.load_state_dict(state)


def test_files_of_urls_are_read_as_weights_only(monkeypatch, tmp_path):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    touched, cached = tmp_path / 'touched', tmp_path / 'hub' / 'checkpoints' / 'some.pth'
    cached.parent.mkdir(parents=True)
    torch.save(dict(calls(touched))['system'], cached)  # as if it had been loaded before
    with pytest.raises(CheckpointError, match=r'http://nowhere/some\.pth: it asks for \w+\.system'):
        runner.load_checkpoint(network(), 'http://nowhere/some.pth')
    assert not touched.exists()


def test_the_environment_does_not_switch_protection_off(monkeypatch, tmp_path):
    touched, path = tmp_path / 'touched', tmp_path / 'some.pth'
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    torch.save(dict(calls(touched))['system'], path)
    with pytest.raises(CheckpointError, match=r'asks for \w+\.system'):
        runner.load_checkpoint(network(), str(path))
    assert not touched.exists()


def test_the_config_inside_a_checkpoint_is_not_built(tmp_path):
    touched, path = tmp_path / 'touched', tmp_path / 'some.pth'
    text = f"model = dict(type='os.mkdir', path={str(touched)!r})"
    torch.save(content(meta={'cfg': text}), path)
    inferencer = object.__new__(ActionRecogInferencer)
    with pytest.raises(ValueError, match=r'some\.pth.*the config inside a checkpoint is not exec'):
        inferencer._init_model({}, str(path))
    assert not touched.exists()


def test_the_log_has_one_line(save, capsys):
    MMLogger.get_instance('one line')
    runner.load_checkpoint(network(), save({'0.weight': torch.zeros(2, 1, 3, 3)}))
    printed = [line for line in capsys.readouterr().out.splitlines() if 'tensors' in line]
    assert len(printed) == 1
    assert 'missing: 0.bias, 1.weight' in printed[0]


@pytest.mark.parametrize('load', ['mmengine', 'torch', 'pretrained'])
def test_layers_that_were_dynamic_and_are_not_are_refused(load, save):
    """Their channels and frames may not have been trained for long."""
    wide, narrow = (dynamic('ResNet3d', {'layers': layers}) for layers in ('layer1', r'layer1\.0'))
    path = save(wide.state_dict())
    message = r'layer1\.1\.conv1\.conv\.gate\.\S+ is of a layer that dynamic\.layers leaves out'
    narrow.pretrained = path
    narrow.pretrained2d = False
    ways = {
        'mmengine': lambda: runner.load_checkpoint(narrow, path),
        'torch': lambda: narrow.load_state_dict(wide.state_dict(), strict=False),
        'pretrained': lambda: narrow.init_weights(),
    }
    with pytest.raises(OtherNetworkError, match=message):
        ways[load]()


def test_arguments_of_loading_may_be_named(save):
    net, other = network(), network()
    nn.init.ones_(net[3].bias)
    path = save(net.state_dict())
    runner.load_checkpoint(model=other, filename=path)
    assert torch.equal(other[3].bias, net[3].bias)
    with pytest.raises(OtherNetworkError, match=path):
        runner.load_checkpoint(model=dynamic('ResNet3d'), filename=path)


def test_the_newest_checkpoint_may_be_asked_for_by_name(tmp_path):
    assert runner.find_latest_checkpoint(path=tmp_path) is None
