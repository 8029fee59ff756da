# VA-RED2 of SlowOnly-50 on AVA 2.1, from its zoo checkpoint.
_base_ = (
    'mmaction::detection/slowonly/slowonly_kinetics400-pretrained-r50_8xb16-4x16x1-20e_ava21-rgb.py'
)
custom_imports = dict(imports=['vared2_mmaction'])

model = dict(
    init_cfg=None,
    backbone=dict(
        _delete_=True,
        type='mmaction.VARED2Backbone',
        backbone=_base_.model.backbone,
        dynamic=dict(),
    ),
    neck=dict(type='mmaction.SoftModulationGateNeck'),
    roi_head=dict(type='VARED2AVARoIHead', loss_budget=dict(budget=0.6)),
)
load_from = (
    'https://download.openmmlab.com/mmaction/v1.0/detection/'
    'slowonly/slowonly_kinetics400-pretrained-r50_8xb16-4x16x1-20e_ava21-rgb/'
    'slowonly_kinetics400-pretrained-r50_8xb16-4x16x1-20e_ava21-rgb_20220906-953ef5fe.pth'
)

max_epochs = 10
custom_hooks = [
    dict(type='BudgetScheduleHook', fall=max_epochs / 4),
    dict(type='FixOptionsHook', begin=max_epochs / 4),
    dict(type='PolicyUsageHook'),
]
train_cfg = dict(max_epochs=max_epochs, val_begin=max_epochs // 4 + 1)
optim_wrapper = dict(optimizer=dict(lr=0.02))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min=0, by_epoch=True)]
val_evaluator = [_base_.val_evaluator, dict(type='ComputeMetric')]
test_evaluator = val_evaluator
