# VA-RED2 of the static network, from its weights: the budget falls, then gates are frozen and the
# learning rate falls.
_base_ = 'static_r2plus1d.py'
custom_hooks = [
    dict(type='BudgetScheduleHook', fall=3),
    dict(type='FreezeGatesHook', begin=3),
    dict(type='PolicyUsageHook'),
]

# The loss counts a lot, so that it moves the gates' biases whatever the classification says; it is
# nil where a batch keeps the budget. Which clips take more is left to the classification.
budget = dict(loss_weight=100.0, budget=0.4, correct_only=False, per_clip=False)
# The stem takes a quarter of the multiply-adds of this small network: its gates see the frames.
layers = r'^conv1|layer\d+\.\d+\.conv'
model = dict(
    backbone=dict(
        type='VARED2ResNet2Plus1d',
        dynamic=dict(channel=2, temporal=3, layers=layers, gate=dict(motion_slope=0.1)),
    ),
    neck=dict(type='SoftModulationGateNeck'),
    cls_head=dict(type='VARED2I3DHead', loss_budget=budget),
)
load_from = 'work_dirs/study/static_r2plus1d/epoch_12.pth'

train_dataloader = dict(batch_size=32)
max_epochs = 12
train_cfg = dict(max_epochs=max_epochs, val_begin=3)
# Adam gives every parameter the same pace: a gate's many weights would shift its answers far
# faster than its biases do.
gate = dict(lr_mult=0.1, decay_mult=0.0)
gate_bias = dict(lr_mult=3.0, decay_mult=0.0)
optim_wrapper = dict(
    optimizer=dict(lr=0.004),
    paramwise_cfg=dict(custom_keys={'gate': gate, 'gate.fc2.bias': gate_bias}),
)
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        begin=3,
        end=max_epochs,
        eta_min=1e-5,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
val_evaluator = [dict(type='AccMetric'), dict(type='ComputeMetric')]
test_evaluator = val_evaluator
work_dir = 'work_dirs/study/vared2_r2plus1d'
