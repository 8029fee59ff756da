custom_imports = dict(imports=['vared2_mmaction'])  # mends the installed releases
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=100, val_begin=1, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4),
    clip_grad=dict(max_norm=40, norm_type=2),
)
param_scheduler = [dict(type='CosineAnnealingLR', T_max=100, eta_min=0, by_epoch=True)]

val_evaluator = dict(type='AccMetric')
test_evaluator = val_evaluator
auto_scale_lr = dict(enable=False, base_batch_size=64)
