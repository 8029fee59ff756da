# VA-RED2 of MMAction2's TSN-ResNet-50 on Kinetics-400, from its zoo checkpoint.
_base_ = 'mmaction::recognition/tsn/tsn_imagenet-pretrained-r50_8xb32-1x1x8-100e_kinetics400-rgb.py'
custom_imports = dict(imports=['vared2_mmaction'])

model = dict(
    backbone=dict(type='VARED2ResNet', pretrained=None, num_segments=8, dynamic=dict()),
    neck=dict(type='SoftModulationGateNeck'),
    cls_head=dict(type='VARED2TSNHead', loss_budget=dict(budget=0.6)),
)
load_from = (
    'https://download.openmmlab.com/mmaction/v1.0/recognition/'
    'tsn/tsn_imagenet-pretrained-r50_8xb32-1x1x8-100e_kinetics400-rgb/'
    'tsn_imagenet-pretrained-r50_8xb32-1x1x8-100e_kinetics400-rgb_20220906-2692d16c.pth'
)
# The time axis are the 8 segments of training; the stock test takes 25.
_base_.test_pipeline[1].update(num_clips=8)
test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))

max_epochs = 40
custom_hooks = [
    dict(type='BudgetScheduleHook', fall=max_epochs / 4),
    dict(type='FixOptionsHook', begin=max_epochs / 4),
    dict(type='PolicyUsageHook'),
]
train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_begin=max_epochs // 4 + 1, val_interval=5
)
optim_wrapper = dict(optimizer=dict(lr=0.005))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min=0, by_epoch=True)]
val_evaluator = [dict(type='AccMetric'), dict(type='ComputeMetric')]
test_evaluator = val_evaluator
