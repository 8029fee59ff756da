# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""tools/visualize_policy.py on the dump of a real test of a detector."""

import json
import re

import cv2
import mmengine
import pytest
import torch
from mmaction.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import DumpResults, Evaluator

from policy_report import visualize
from synthetic.moving_boxes import ACTIONS
from vared2_mmaction.apis import load_model
from vared2_mmaction.models.policy import force_policy

from ..loading import load_tool

pytestmark = pytest.mark.fast


@pytest.fixture(scope='module')
def dump(project, tmp_path_factory):
    """Tests as MMEngine's test loop does, every third clip with a dearer policy."""
    path = tmp_path_factory.mktemp('dump') / 'dump.pkl'
    cfg = Config.fromfile(project.config)
    model, _ = load_model(cfg, project.checkpoint)
    model.eval()
    data = [pseudo_collate([clip]) for clip in DATASETS.build(cfg.test_dataloader.dataset)]
    evaluator = Evaluator([DumpResults(str(path))])
    with torch.no_grad():
        for number, batch in enumerate(data):
            with force_policy(model, channel=0, temporal=number % 3):
                evaluator.process(model.test_step(batch), batch)
    evaluator.evaluate(len(data))
    return str(path)


@pytest.fixture
def run(project, dump, tmp_path):
    def run(*options):
        tool = load_tool('visualize_policy')
        tool.main([dump, project.config, '--out', str(tmp_path / 'out'), *options])
        return tmp_path / 'out'

    return run


def table(out):
    text = (out / 'index.html').read_text('utf-8')
    return json.loads(re.search(r'id="data">(.*?)</script>', text)[1])


def annotation(project):
    """Actions by keyframe, in the order of the file."""
    found = {}
    with open(f'{project.data}/annotations/test.csv') as file:
        for line in file:
            video, timestamp, *_, action, _ = line.split(',')
            found.setdefault((video, timestamp), set()).add(int(action))
    return found


def test_a_test_becomes_a_page(run, project, dump, capsys):
    out = run('--frames', '4')
    samples, annotated = mmengine.load(dump), annotation(project)
    found = table(out)
    assert found['video'] == [f'{video[5:]} @ {time}' for video, time in annotated]  # no test/
    assert found['labels'] == [sorted(actions) for actions in annotated.values()]
    assert found['classes'] == ['background', *ACTIONS]
    assert found['ratio'] == pytest.approx([s['compute_ratio'] for s in samples], abs=1e-6)
    best = [s['pred_instances']['scores'][:, 1:].max(0).values for s in samples]
    assert found['predicted'] == [int(scores.argmax()) + 1 for scores in best]
    assert all(0 <= share <= 1 for share in found['correct'])
    text = (out / 'index.html').read_text('utf-8')
    shown = len(set().union(*annotated.values()))
    assert text.count('data:image/jpeg') == 2 * shown
    assert 'top-1' not in text
    assert 'some missed' in text
    assert 'missing' not in capsys.readouterr().out
    for name in ('categories', 'compute', 'options'):
        assert cv2.imread(str(out / f'{name}.png')).std() > 0


def test_what_is_found_is_what_the_samples_say(project, dump):
    study = visualize.load_study(dump, Config.fromfile(project.config))
    for sample, share in zip(mmengine.load(dump), study.videos.correct, strict=True):
        boxes = sample['gt_instances']['bboxes']
        found = sample['pred_instances']['bboxes'] * 48  # pixels of the clip, as the annotation
        hits = total = 0
        for box, labels in zip(boxes, sample['gt_instances']['labels'], strict=True):
            low, high = torch.maximum(box[:2], found[:, :2]), torch.minimum(box[2:], found[:, 2:])
            common = (high - low).clamp(min=0).prod(1)
            areas = [(some[..., 2:] - some[..., :2]).prod(-1) for some in (box, found)]
            overlap = common / (sum(areas) - common)
            actions = labels.nonzero()[:, 0]
            total += len(actions)
            if overlap.max() >= 0.5:
                scores = sample['pred_instances']['scores'][overlap.argmax(), 1:]
                best = scores.topk(len(actions)).indices + 1
                hits += int(torch.isin(actions, best).sum())
        assert share == pytest.approx(hits / total)
    assert study.videos.correct.max() > 0


def test_names_may_come_from_a_file(run, tmp_path):
    names = [f'action {number}' for number in range(1, 9)]
    (tmp_path / 'names.txt').write_text('\n'.join(names))
    assert table(run('--labels', str(tmp_path / 'names.txt'), '--categories', '0'))['classes'] == [
        'background',
        *names,
    ]


def test_proposals_are_not_needed(run):
    out = run(
        '--cfg-options', 'test_dataloader.dataset.proposal_file=gone.pkl', '--categories', '0'
    )
    assert len(table(out)['video']) == 6


def test_the_dump_of_another_split_is_refused(run, project, capsys):
    with pytest.raises(SystemExit):
        run(
            '--cfg-options',
            f'test_dataloader.dataset.ann_file={project.data}/annotations/val.csv',
        )
    assert '6 predictions, but the data set has 1 videos' in capsys.readouterr().err
