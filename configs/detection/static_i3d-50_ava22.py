# MMAction2's I3D-ResNet-50 in its recipe for AVA 2.2, clips of 32 frames, from Kinetics-400.
_base_ = [
    'mmaction::detection/slowfast/slowfast_kinetics400-pretrained-r50_8xb6-8x8x1-cosine-10e_ava22-rgb.py',
    '../_base_/models/ava_backbones.py',
]
custom_imports = dict(imports=['vared2_mmaction'])  # mends the installed releases

model = dict(
    init_cfg=dict(checkpoint=_base_.i3d_kinetics400),
    backbone=dict(_delete_=True, **_base_.i3d),
    roi_head=dict(bbox_head=dict(in_channels=2048)),
)
