# VA-RED2 of MMAction2's R(2+1)D-34 on Kinetics-400, from its zoo checkpoint.
_base_ = 'mmaction::recognition/r2plus1d/r2plus1d_r34_8xb8-8x8x1-180e_kinetics400-rgb.py'
custom_imports = dict(imports=['vared2_mmaction'])

model = dict(
    backbone=dict(type='VARED2ResNet2Plus1d', dynamic=dict(channel_multiple=16)),
    neck=dict(type='SoftModulationGateNeck'),
    cls_head=dict(type='VARED2I3DHead', loss_budget=dict(budget=0.6)),
)
load_from = (
    'https://download.openmmlab.com/mmaction/v1.0/recognition/'
    'r2plus1d/r2plus1d_r34_8xb8-8x8x1-180e_kinetics400-rgb/'
    'r2plus1d_r34_8xb8-8x8x1-180e_kinetics400-rgb_20220812-47cfe041.pth'
)

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
