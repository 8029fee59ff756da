# MMAction2's R(2+1)D-34 in its recipe for AVA 2.1, clips of 8 frames, from Kinetics-400.
_base_ = [
    'mmaction::detection/slowonly/slowonly_kinetics400-pretrained-r101_8xb16-8x8x1-20e_ava21-rgb.py',
    '../_base_/models/ava_backbones.py',
]
custom_imports = dict(imports=['vared2_mmaction'])  # mends the installed releases

model = dict(
    init_cfg=dict(checkpoint=_base_.r2plus1d_kinetics400),
    backbone=dict(_delete_=True, **_base_.r2plus1d),
    roi_head=dict(bbox_head=dict(in_channels=512)),
)
