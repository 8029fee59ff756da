# VA-RED2 of R(2+1)D-34 on AVA 2.1, from the static network's weights.
_base_ = 'static_r2plus1d-34_ava21.py'
custom_imports = dict(imports=['vared2_mmaction'])

model = dict(
    init_cfg=None,
    backbone=dict(type='mmaction.VARED2ResNet2Plus1d', dynamic=dict(channel_multiple=16)),
    neck=dict(type='mmaction.SoftModulationGateNeck'),
    roi_head=dict(type='VARED2AVARoIHead', loss_budget=dict(budget=0.6)),
)
load_from = 'work_dirs/static_r2plus1d-34_ava21/epoch_20.pth'

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
