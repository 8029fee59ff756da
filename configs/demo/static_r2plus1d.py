# The static twin of the demo: a stock R(2+1)D with half the blocks and a quarter of the channels of
# R(2+1)D-18, on the moving-shapes data set.
_base_ = [
    '../_base_/datasets/moving_shapes.py',
    '../_base_/schedules/demo.py',
    'mmaction::_base_/default_runtime.py',
]
custom_imports = dict(imports=['vared2_mmaction'])  # mends the installed releases

model = dict(
    type='Recognizer3D',
    backbone=dict(
        type='ResNet2Plus1d',
        depth=18,
        stage_blocks=(1, 1, 1, 1),
        base_channels=16,
        pretrained=None,
        pretrained2d=False,
        norm_eval=False,
        conv_cfg=dict(type='Conv2plus1d'),
        norm_cfg=dict(type='BN3d'),
        conv1_kernel=(3, 3, 3),
        conv1_stride_t=1,
        pool1_stride_t=1,
        temporal_strides=(1, 1, 2, 2),
        zero_init_residual=False,
    ),
    cls_head=dict(
        type='I3DHead',
        num_classes=14,
        in_channels=128,
        dropout_ratio=0.2,
        average_clips='prob',
    ),
    data_preprocessor=dict(
        type='ActionDataPreprocessor',
        mean=[128.0] * 3,
        std=[40.0] * 3,
        format_shape='NCTHW',
    ),
)
max_epochs = 18
train_cfg = dict(max_epochs=max_epochs)
by_iteration = dict(by_epoch=True, convert_to_iter_based=True)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=2, **by_iteration),
    dict(type='CosineAnnealingLR', begin=2, end=max_epochs, eta_min=0, **by_iteration),
]
default_hooks = dict(
    checkpoint=dict(interval=5, max_keep_ckpts=1, save_best='acc/top1'),
    logger=dict(interval=35),
)
env_cfg = dict(dist_cfg=dict(backend='gloo'))  # also on several CPU processes
work_dir = 'work_dirs/demo/static_r2plus1d'
