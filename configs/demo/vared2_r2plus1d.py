# VA-RED2 of the static twin, from its weights: the budget falls while gates learn, then every layer
# keeps the options that they want, and the network settles.
_base_ = 'static_r2plus1d.py'
max_epochs = 18
custom_hooks = [
    dict(type='BudgetScheduleHook', fall=max_epochs / 4),
    dict(type='FixOptionsHook', begin=max_epochs / 4),
    dict(type='PolicyUsageHook'),
]

budget = dict(loss_weight=100.0, budget=0.4, correct_only=False, per_clip=False)
# The stem takes a quarter of the multiply-adds of so small a network.
layers = r'^conv1|layer\d+\.\d+\.conv'
model = dict(
    backbone=dict(type='VARED2ResNet2Plus1d', dynamic=dict(channel=2, temporal=3, layers=layers)),
    neck=dict(type='SoftModulationGateNeck'),
    cls_head=dict(type='VARED2I3DHead', loss_budget=budget),
)
load_from = 'work_dirs/demo/static_r2plus1d/epoch_18.pth'

train_cfg = dict(max_epochs=max_epochs, val_begin=max_epochs)
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
        begin=max_epochs / 4,
        end=max_epochs,
        eta_min=1e-5,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
val_evaluator = [dict(type='AccMetric'), dict(type='ComputeMetric')]
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(save_best=None))  # the best one had not met its budget yet
work_dir = 'work_dirs/demo/vared2_r2plus1d'
