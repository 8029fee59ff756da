# VA-RED2 of the static twin, from its weights: the budget falls, then gates are frozen.
_base_ = 'static_r2plus1d.py'
custom_hooks = [
    dict(type='BudgetScheduleHook', fall=5),
    dict(type='FreezeGatesHook', begin=7),
    dict(type='PolicyUsageHook'),
]

model = dict(
    backbone=dict(
        type='VARED2ResNet2Plus1d',
        dynamic=dict(channel=2, temporal=2, gate=dict(initial=(0.8, 0.2))),
    ),
    neck=dict(type='SoftModulationGateNeck'),
    cls_head=dict(type='VARED2I3DHead', loss_budget=dict(loss_weight=10.0, budget=0.6)),
)
load_from = 'work_dirs/demo/static_r2plus1d/epoch_24.pth'

max_epochs = 20
train_cfg = dict(max_epochs=max_epochs, val_begin=2)
# Adam gives every parameter the same pace: a gate's many weights would shift its answers far
# faster than its biases do, which close options for all clips.
gate = dict(lr_mult=0.1, decay_mult=0.0)
gate_bias = dict(lr_mult=3.0, decay_mult=0.0)
optim_wrapper = dict(
    optimizer=dict(lr=0.003),
    paramwise_cfg=dict(custom_keys={'gate': gate, 'gate.fc2.bias': gate_bias}),
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
