# MMAction2's SlowOnly-50 in its recipe for AVA 2.2, clips of 8 frames, from Kinetics-400.
_base_ = [
    'mmaction::detection/slowfast/slowfast_kinetics400-pretrained-r50_8xb6-8x8x1-cosine-10e_ava22-rgb.py',
    '../_base_/models/ava_backbones.py',
]
custom_imports = dict(imports=['vared2_mmaction'])  # mends the installed releases

model = dict(
    init_cfg=dict(checkpoint=_base_.slowonly_kinetics400),
    backbone=dict(_delete_=True, **_base_.slowonly),
    roi_head=dict(bbox_head=dict(in_channels=2048)),
)

frames = dict(type='SampleAVAFrames', clip_len=8, frame_interval=8)
train_pipeline = [frames, *_base_.train_pipeline[1:]]
val_pipeline = [dict(test_mode=True, **frames), *_base_.val_pipeline[1:]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=val_pipeline))
test_dataloader = val_dataloader
