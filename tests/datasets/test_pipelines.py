# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Data sets in wrappers are found, as configs and built, and so are steps that decode once."""

import pytest
from mmaction.registry import DATASETS
from mmaction.utils import register_all_modules
from mmengine.config import ConfigDict

from vared2_mmaction.datasets import DecodeOnce
from vared2_mmaction.datasets.pipelines import first_dataset, pipeline_steps, type_name

pytestmark = pytest.mark.fast

SAMPLE, CROP = dict(type='SampleFrames', clip_len=1), dict(type='CenterCrop', crop_size=8)
ONCE = dict(type='DecodeOnce', transforms=[dict(type='DecordInit'), SAMPLE])
NAMES = ['DecordInit', 'SampleFrames', 'CenterCrop']
WRAPPERS = {
    'none': lambda dataset: dataset,
    'repeated': lambda dataset: dict(type='RepeatDataset', times=2, dataset=dataset),
    'several': lambda dataset: dict(type='ConcatDataset', datasets=[dataset, dataset]),
    'nested': lambda dataset: dict(
        type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[dataset])
    ),
}


@pytest.mark.parametrize('kind', ['DecodeOnce', 'mmaction.DecodeOnce', DecodeOnce])
@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_steps_are_found_in_wrappers(wrapper, kind, tmp_path):
    register_all_modules()
    (tmp_path / 'list.txt').write_text('a.mp4 0\n')
    ann_file, steps = str(tmp_path / 'list.txt'), [{**ONCE, 'type': kind}, CROP]
    inner = dict(type='VideoDataset', ann_file=ann_file, pipeline=steps)
    cfg = ConfigDict(WRAPPERS[wrapper](inner))
    assert first_dataset(cfg) == inner
    assert [step.type for step in pipeline_steps(cfg)] == NAMES
    built = DATASETS.build(cfg)
    assert first_dataset(built).ann_file == ann_file
    assert [type_name(type(step)) for step in pipeline_steps(built)] == NAMES


def test_what_has_no_pipeline_stays():
    for dataset in (None, {}, {'datasets': []}, {'dataset': {'type': 'MyDataset'}}):
        assert first_dataset(dataset) is dataset
        assert pipeline_steps(dataset) == []
