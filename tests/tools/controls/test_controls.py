# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Controls: what accuracy and compute are with other gate outputs."""

import json
import re

import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import Runner

from controls.gate_outputs import Recording, Replay, replaced
from controls.measure import interval
from vared2_mmaction.apis import load_model
from vared2_mmaction.models import force_policies
from vared2_mmaction.ops import Modulation

from ...networks import change, make_static, write_network, write_test_config

VIEWS = """
test_pipeline = [dict(step) for step in _base_.test_pipeline]
test_pipeline[1].update(num_clips=2)
test_dataloader.update(batch_size=1, dataset=dict(pipeline=test_pipeline, **dataset))
model = dict(test_cfg=dict(max_testing_views=1))
"""


@pytest.fixture(scope='module')
def project(tmp_path_factory, videos):
    """Arguments CONFIG and CHECKPOINT by name."""
    folder, found = tmp_path_factory.mktemp('controls'), {}
    torch.manual_seed(0)
    for kind, more in (('Recognizer3D', VIEWS), ('Recognizer2D', '')):
        config, checkpoint = write_network(folder, kind)
        content = torch.load(checkpoint)
        for name, value in content['state_dict'].items():
            if name.endswith('gate.fc1.weight'):
                value *= 30  # the videos resemble each other
        torch.save(content, checkpoint)
        write_test_config(folder / f'tested_{kind}.py', config, videos, more)
        found[kind] = str(folder / f'tested_{kind}.py'), checkpoint
    write_test_config(folder / 'static.py', found['Recognizer3D'][0], videos)
    make_static(folder / 'static.py')
    found['static'] = str(folder / 'static.py'), found['Recognizer3D'][1]
    return found


@pytest.fixture
def network(project):
    model, _ = load_model(Config.fromfile(project['Recognizer3D'][0]))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith('gate.fc2.weight'):
            torch.nn.init.normal_(parameter)
    return revert_sync_batchnorm(model).eval()


@pytest.mark.parametrize('kind', ['Recognizer3D', 'Recognizer2D'])
def test_the_tool_reports_all_controls(kind, project, tester, tmp_path, capsys):
    tester.main([*project[kind], '--work-dir', 'out', '--dump', 'dump.pkl', '--controls'])
    found = json.loads((tmp_path / 'out' / 'controls.json').read_text())
    samples = mmengine.load('dump.pkl')
    right = [int(s['pred_label']) == int(s['gt_label']) for s in samples]
    ratios = [s['compute_ratio'] for s in samples]
    assert found['clips'] == len(samples) == 3
    assert found['own']['top1'] == pytest.approx(np.mean(right))
    assert found['own']['ratio'] == pytest.approx(np.mean(ratios))
    assert found['spread'] == pytest.approx(np.percentile(ratios, [10, 90]))
    # Clips exchange what they compute.
    assert len(set(ratios)) > 1
    assert found['other']['gmacs'] == pytest.approx(found['own']['gmacs'])
    assert 0 < found['mean']['ratio'] < 1
    printed = capsys.readouterr().out
    for words in ('its own', "another clip's", 'the mean of all clips', '95 % interval'):
        assert words in printed


def test_options_take_the_place_of_outputs(project, tester, tmp_path):
    tester.main([*project['Recognizer3D'], '--work-dir', 'out', '--controls', 'options'])
    found = json.loads((tmp_path / 'out' / 'controls.json').read_text())
    assert found['kind'] == 'options'
    assert found['other']['gmacs'] == pytest.approx(found['own']['gmacs'])


def test_networks_without_gates_are_refused(project, tester, capsys):
    with pytest.raises(SystemExit, match='2'):
        tester.main([*project['static'], '--work-dir', 'out', '--controls'])
    assert '--controls: Recognizer3D has no dynamic layer\n' in capsys.readouterr().err


@pytest.mark.parametrize('test', [False, True])
def test_clips_without_one_label_are_refused(test, project, tester, tmp_path, capsys, monkeypatch):
    config, checkpoint = project['Recognizer3D']
    more = 'model = dict(cls_head=dict(multi_class=True))'
    if test:
        (tmp_path / 'unlabelled.txt').write_text('test0.mp4 0\ntest1.mp4 -1\n')
        more = f"test_dataloader = dict(dataset=dict(ann_file='{tmp_path}/unlabelled.txt'))"
    else:
        monkeypatch.setattr(Runner, 'test', None)  # nothing is tested before it is said
    with pytest.raises(SystemExit, match='2'):
        tester.main([change(config, more), checkpoint, '--work-dir', 'out', '--controls'])
    assert re.search('--controls: expected .*one label', capsys.readouterr().err)


@torch.no_grad()
def test_replayed_outputs_are_the_networks(network):
    clips = torch.randn(5, 3, 8, 32, 32) * torch.arange(1.0, 6).view(5, 1, 1, 1, 1)
    with Recording(network) as recording:
        features, decisions = network.backbone(clips)
    own = recording.outputs()
    replay = Replay(network, own)
    with replay:
        first = network.backbone(clips[:2].flip(0))  # whatever they are asked
    with replay:
        rest = network.backbone(clips[2:])  # goes on with the next clip
    torch.testing.assert_close(rest[0], features[2:])
    assert torch.equal(first[1][:, 1:, 3:5], decisions[:2, 1:, 3:5])
    policy = decisions[:, 1:, 3:5]
    assert len(policy.unique(dim=0)) > 1
    with Replay(network, replaced(own, 5, single=True)['own']):
        found = network.backbone(clips)
    with force_policies(network, policy):
        expected = network.backbone(clips)
    torch.testing.assert_close(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def modulation(*rows):
    return Modulation(torch.tensor(rows), torch.ones(len(rows), 1))


def test_what_clips_get():
    rows = [(0.5, 0.0, 0.5), (0.25, 0.25, 0.0), (0.0, 0.5, 0.0), (0.0, 0.5, 0.25)]
    views = [row for row in rows for _ in range(2)]
    found = replaced({'layer': modulation(*views)}, 4)
    assert torch.equal(found['own']['layer'].channel, torch.tensor(views))
    other = found['other']['layer'].channel
    assert sorted(map(tuple, other.tolist())) == sorted(views)
    assert not (other == torch.tensor(views)).all(1).any()
    # Options that half of the clips have on stay.
    mean = torch.tensor([0.1875, 0.3125, 0.1875]).expand(8, 3)
    assert torch.equal(found['mean']['layer'].channel, mean)
    few = [(0.5, 0.0, 0.0), (0.0, 0.25, 0.0), (0.0, 0.5, 0.0)]
    assert replaced({'layer': modulation(*few)}, 3)['mean']['layer'].channel[0].tolist() == [
        *(0.0, 0.25, 0.0)
    ]
    single = replaced({'layer': modulation(*few)}, 3, single=True)
    assert single['own']['layer'].channel.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
    assert single['mean']['layer'].channel.tolist() == [[0, 1, 0]] * 3


def test_clips_of_different_lengths_are_refused(network):
    with torch.no_grad(), Recording(network) as recording:
        for frames in (8, 1):
            network.backbone(torch.randn(1, 3, frames, 32, 32))
    with pytest.raises(ValueError, match='--controls: clips leave .* different numbers of options'):
        recording.outputs()


def test_interval_of_a_mean():
    assert interval(np.zeros(4)) == {'mean': 0, 'low': 0, 'high': 0}
    differences = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 2000, p=[0.1, 0.7, 0.2])
    found = interval(differences)
    error = 1.96 * differences.std() / 2000**0.5
    assert found['low'] == pytest.approx(found['mean'] - error, abs=0.1 * error)
    assert found['high'] == pytest.approx(found['mean'] + error, abs=0.1 * error)
    assert interval(differences) == found
