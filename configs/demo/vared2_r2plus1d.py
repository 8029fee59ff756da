# VA-RED2 of the static twin, from its weights; the budget loss rises in the first epochs.
_base_ = 'static_r2plus1d.py'
custom_hooks = [dict(type='BudgetScheduleHook', ramp=2), dict(type='PolicyUsageHook')]

model = dict(
    backbone=dict(type='VARED2ResNet2Plus1d', dynamic=dict(gate=dict(initial=(0.8, 0.13, 0.07)))),
    neck=dict(type='SoftModulationGateNeck'),
    cls_head=dict(type='VARED2I3DHead', loss_budget=dict(loss_weight=1.0, budget=0.65)),
)
load_from = 'work_dirs/demo/static_r2plus1d/epoch_24.pth'

max_epochs = 10
train_cfg = dict(max_epochs=max_epochs, val_begin=2)
# Adam gives every parameter the same pace, however small its gradient: all gates would close at
# once, before the loss sees what the first one saves. A large eps makes steps proportional to
# gradients: those close first which save most and are missed least.
gate = dict(lr_mult=3.0, decay_mult=0.0, eps=0.1)
optim_wrapper = dict(
    optimizer=dict(lr=0.003),
    paramwise_cfg=dict(custom_keys={'gate': gate}),
)
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        begin=0,
        end=max_epochs,
        eta_min=1e-5,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
val_evaluator = [dict(type='AccMetric'), dict(type='ComputeMetric')]
test_evaluator = val_evaluator
work_dir = 'work_dirs/demo/vared2_r2plus1d'
