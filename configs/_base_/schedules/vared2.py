# From the static weights: all options open first, then the budget falls, then gates are frozen.
custom_imports = dict(imports=['vared2_mmaction'])
max_epochs = 40
custom_hooks = [
    dict(type='BudgetScheduleHook', begin=max_epochs / 20, fall=max_epochs / 2),
    dict(type='FreezeGatesHook', begin=max_epochs * 3 / 4),
    dict(type='PruneOptionsHook', unused_for=2000, begin=max_epochs * 3 / 4),
    dict(type='PolicyUsageHook'),
]

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_begin=1, val_interval=5)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.005, momentum=0.9, weight_decay=1e-4),
    clip_grad=dict(max_norm=40, norm_type=2),
)
param_scheduler = [dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min=0, by_epoch=True)]

val_evaluator = [dict(type='AccMetric'), dict(type='ComputeMetric')]
test_evaluator = val_evaluator
auto_scale_lr = dict(enable=False, base_batch_size=64)
