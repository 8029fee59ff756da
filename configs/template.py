# VA-RED2 for videos of your own: copy this file beside itself, change what is above the line, and
# train it; all else follows from that. docs/training.md says which knob to turn when.
data_root = 'data/mine'  # train.txt, val.txt and test.txt, lines of "path label", are here
videos = dict(video=data_root)  # what the paths are relative to
num_classes = 10
clip_len, frame_interval = 8, 8  # frames of a clip; a video's frames from one to the next
size = 112  # pixels, the side of what the network sees
flip_ratio = 0.5  # 0 where left and right are classes
batch_size, num_workers = 8, 4
max_epochs = 30
lr = 0.0005  # for this batch size on one GPU
budget = 0.6  # share of the static network's multiply-adds
zoo = 'https://download.openmmlab.com/mmaction/v1.0/recognition/r2plus1d/'
name = 'r2plus1d_r34_8xb8-8x8x1-180e_kinetics400-rgb'
load_from = f'{zoo}{name}/{name}_20220812-47cfe041.pth'  # or a static network of your own
# --------------------------------------------------------------------------------------------------
_base_ = [
    'mmaction::_base_/models/r2plus1d_r34.py',
    '_base_/datasets/kinetics400.py',
    '_base_/schedules/vared2.py',
    'mmaction::_base_/default_runtime.py',
]
loss = dict(loss_weight=100.0, budget=budget, correct_only=False, per_clip=False)
model = dict(
    backbone=dict(type='VARED2ResNet2Plus1d', dynamic=dict(channel_multiple=16)),
    neck=dict(type='SoftModulationGateNeck'),
    cls_head=dict(type='VARED2I3DHead', num_classes=num_classes, loss_budget=loss),
)
frames = dict(type='SampleFrames', clip_len=clip_len, frame_interval=frame_interval, num_clips=1)
resize = dict(type='Resize', scale=(-1, size * 8 // 7))
square = [dict(type='RandomResizedCrop'), dict(type='Resize', scale=(size, size), keep_ratio=False)]
crop = [dict(type='CenterCrop', crop_size=size)]
flip = dict(type='Flip', flip_ratio=flip_ratio)
pack = [dict(type='FormatShape', input_format='NCTHW'), dict(type='PackActionInputs')]
read, decode = dict(type='DecordInit'), dict(type='DecordDecode')
train_pipeline = [read, frames, decode, resize, *square, flip, *pack]
test_pipeline = [read, dict(test_mode=True, **frames), decode, resize, *crop, *pack]
loader = dict(batch_size=batch_size, num_workers=num_workers, persistent_workers=num_workers > 0)
train, val, test = (
    dict(ann_file=f'{data_root}/{split}.txt', data_prefix=videos, pipeline=pipeline)
    for split, pipeline in dict(train=train_pipeline, val=test_pipeline, test=test_pipeline).items()
)
train_dataloader = dict(dataset=train, **loader)
val_dataloader, test_dataloader = dict(dataset=val, **loader), dict(dataset=test, **loader)
train_cfg = dict(max_epochs=max_epochs, val_begin=1, val_interval=1)
custom_hooks = [
    dict(type='BudgetScheduleHook', fall=max_epochs / 4),
    dict(type='FixOptionsHook', begin=max_epochs / 4),
    dict(type='PolicyUsageHook'),
]
gate, bias = dict(lr_mult=0.1, decay_mult=0.0), dict(lr_mult=3.0, decay_mult=0.0)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=lr, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys={'gate': gate, 'gate.fc2.bias': bias}),
)
auto_scale_lr = dict(base_batch_size=batch_size)
param_scheduler = [dict(type='CosineAnnealingLR', T_max=max_epochs, convert_to_iter_based=True)]
default_hooks = dict(checkpoint=dict(save_best=None))  # the best one had not met its budget yet
