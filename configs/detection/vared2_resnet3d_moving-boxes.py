# VA-RED2 of the static twin, from its weights: the budget falls while gates learn, then every layer
# keeps the options that they want.
_base_ = 'static_resnet3d_moving-boxes.py'
custom_imports = dict(imports=['vared2_mmaction'])
custom_hooks = [
    dict(type='BudgetScheduleHook', fall=7),
    dict(type='FixOptionsHook', begin=8),
    dict(type='PolicyUsageHook'),
]

model = dict(
    backbone=dict(
        type='mmaction.VARED2ResNet3d', dynamic=dict(gate=dict(initial=(0.8, 0.13, 0.07)))
    ),
    neck=dict(type='mmaction.SoftModulationGateNeck'),
    roi_head=dict(type='VARED2AVARoIHead', loss_budget=dict(loss_weight=10.0, budget=0.72)),
)
load_from = 'work_dirs/static_resnet3d_moving-boxes/epoch_24.pth'

max_epochs = 16
train_cfg = dict(max_epochs=max_epochs, val_begin=max_epochs // 2 + 1)
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
val_evaluator = [_base_.val_evaluator, dict(type='ComputeMetric')]
test_evaluator = [_base_.test_evaluator, dict(type='ComputeMetric')]
work_dir = 'work_dirs/vared2_resnet3d_moving-boxes'
