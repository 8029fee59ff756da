# The static network of the study: that of the demo with half its channels, so that few are to
# spare.
_base_ = '../demo/static_r2plus1d.py'

model = dict(backbone=dict(base_channels=8), cls_head=dict(in_channels=64))
val_dataloader = dict(batch_size=64)
test_dataloader = dict(batch_size=64)

max_epochs = 12
train_cfg = dict(max_epochs=max_epochs)
by_iteration = dict(by_epoch=True, convert_to_iter_based=True)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=1.5, **by_iteration),
    dict(type='CosineAnnealingLR', begin=1.5, end=max_epochs, eta_min=0, **by_iteration),
]
work_dir = 'work_dirs/study/static_r2plus1d'
