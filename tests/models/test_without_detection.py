# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Where mmdet is missing, names of detection say what to install."""

import pytest
from mmaction.registry import MODELS
from mmengine.config import Config

from vared2_mmaction.apis.check import check_config
from vared2_mmaction.installation import has_detection

pytestmark = pytest.mark.skipif(has_detection(), reason='detection is installed here')
MODEL = {
    'type': 'FastRCNN',
    '_scope_': 'mmdet',
    'backbone': {'type': 'mmaction.VARED2ResNet3d', 'depth': 50, 'pretrained': None},
    'neck': {'type': 'mmaction.SoftModulationGateNeck'},
    'roi_head': {'type': 'VARED2AVARoIHead'},
}


@pytest.mark.parametrize('config', [MODEL, MODEL['roi_head'], {'type': 'AVARoIHead'}])
def test_building_says_what_to_install(config):
    with pytest.raises(ImportError, match=r'needs mmcv with .* and mmdet.*make setup-detection'):
        MODELS.build(config)


def test_tools_say_so_before_anything_is_built():
    with pytest.raises(ValueError, match=r"model\.type='FastRCNN'.*make setup-detection"):
        check_config(Config({'model': MODEL}))
