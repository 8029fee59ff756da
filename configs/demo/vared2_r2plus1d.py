# VA-RED2 of the static twin, from its weights: gates open first, then the budget loss.
_base_ = 'static_r2plus1d.py'
custom_hooks = [dict(type='BudgetScheduleHook', begin=1, ramp=2)]

model = dict(
    backbone=dict(type='VARED2ResNet2Plus1d', dynamic=dict()),
    neck=dict(type='SoftModulationGateNeck'),
    cls_head=dict(type='VARED2I3DHead', loss_budget=dict(loss_weight=2.0, budget=0.4)),
)
load_from = 'work_dirs/demo/static_r2plus1d/epoch_24.pth'

max_epochs = 12
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=0.002))
by_iteration = dict(by_epoch=True, convert_to_iter_based=True)
param_scheduler = [
    dict(type='CosineAnnealingLR', begin=0, end=max_epochs, eta_min=1e-5, **by_iteration)
]
val_evaluator = [dict(type='AccMetric'), dict(type='ComputeMetric')]
test_evaluator = val_evaluator
work_dir = 'work_dirs/demo/vared2_r2plus1d'
