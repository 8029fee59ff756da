# VA-RED2 of I3D-ResNet-50 on AVA 2.2, from the static network's weights.
_base_ = 'static_i3d-50_ava22.py'
custom_imports = dict(imports=['vared2_mmaction'])

model = dict(
    init_cfg=None,
    backbone=dict(type='mmaction.VARED2ResNet3d', dynamic=dict()),
    neck=dict(type='mmaction.SoftModulationGateNeck'),
    roi_head=dict(type='VARED2AVARoIHead', loss_budget=dict(budget=0.6)),
)
load_from = 'work_dirs/static_i3d-50_ava22/epoch_10.pth'

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
