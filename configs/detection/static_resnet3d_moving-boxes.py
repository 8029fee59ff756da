# The static twin on moving boxes: a stock ResNet3d, three stages of a block, stride 8.
_base_ = [
    '../_base_/datasets/moving_boxes.py',
    '../_base_/schedules/demo.py',
    'mmaction::_base_/default_runtime.py',
]
custom_imports = dict(imports=['vared2_mmaction'])  # mends the installed releases

model = dict(
    type='FastRCNN',
    _scope_='mmdet',
    backbone=dict(
        type='mmaction.ResNet3d',
        depth=18,
        stage_blocks=(1, 1, 1),
        num_stages=3,
        out_indices=(2,),
        base_channels=16,
        pretrained=None,
        pretrained2d=False,
        norm_eval=False,
        conv1_kernel=(1, 5, 5),
        conv1_stride_t=1,
        pool1_stride_t=1,
        spatial_strides=(1, 2, 1),
        temporal_strides=(1, 1, 2),
        dilations=(1, 1, 1),
        inflate=(1, 1, 1),
        zero_init_residual=False,
    ),
    roi_head=dict(
        type='AVARoIHead',
        bbox_roi_extractor=dict(type='SingleRoIExtractor3D', featmap_stride=8, output_size=4),
        bbox_head=dict(
            type='BBoxHeadAVA',
            background_class=True,
            in_channels=64,
            num_classes=9,
            dropout_ratio=0.2,
        ),
    ),
    data_preprocessor=dict(
        type='mmaction.ActionDataPreprocessor',
        mean=[128.0] * 3,
        std=[40.0] * 3,
        format_shape='NCTHW',
    ),
    train_cfg=dict(
        rcnn=dict(
            assigner=dict(
                type='MaxIoUAssignerAVA', pos_iou_thr=0.7, neg_iou_thr=0.7, min_pos_iou=0.7
            ),
            sampler=dict(type='RandomSampler', num=32, pos_fraction=1),
            pos_weight=1.0,
        )
    ),
    test_cfg=dict(rcnn=None),
)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1), logger=dict(interval=25))
work_dir = 'work_dirs/static_resnet3d_moving-boxes'
