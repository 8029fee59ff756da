# VA-RED2 of SlowOnly-50 on AVA 2.2, from the static network's weights.
_base_ = 'static_slowonly-50_ava22.py'
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
load_from = 'work_dirs/static_slowonly-50_ava22/epoch_10.pth'

max_epochs = 5
custom_hooks = [
    dict(type='BudgetScheduleHook', fall=max_epochs / 4),
    dict(type='FixOptionsHook', begin=max_epochs / 4),
    dict(type='PolicyUsageHook'),
]
train_cfg = dict(max_epochs=max_epochs, val_begin=max_epochs // 4 + 1)
optim_wrapper = dict(optimizer=dict(lr=0.0075))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min=0, by_epoch=True)]
val_evaluator = [_base_.val_evaluator, dict(type='ComputeMetric')]
test_evaluator = val_evaluator
