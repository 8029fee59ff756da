# One clip of 8 frames, every 8th frame; MMAction2's pipelines for R(2+1)D.
data_root = 'data/kinetics400/videos_train'
data_root_val = 'data/kinetics400/videos_val'
train_list = 'data/kinetics400/kinetics400_train_list_videos.txt'
val_list = 'data/kinetics400/kinetics400_val_list_videos.txt'

frames = dict(clip_len=8, frame_interval=8)
format_inputs = [dict(type='FormatShape', input_format='NCTHW'), dict(type='PackActionInputs')]
train_pipeline = [
    dict(type='DecordInit'),
    dict(type='SampleFrames', num_clips=1, **frames),
    dict(type='DecordDecode'),
    dict(type='Resize', scale=(-1, 256)),
    dict(type='RandomResizedCrop'),
    dict(type='Resize', scale=(224, 224), keep_ratio=False),
    dict(type='Flip', flip_ratio=0.5),
    *format_inputs,
]
val_pipeline = [
    dict(type='DecordInit'),
    dict(type='SampleFrames', num_clips=1, test_mode=True, **frames),
    dict(type='DecordDecode'),
    dict(type='Resize', scale=(-1, 256)),
    dict(type='CenterCrop', crop_size=224),
    *format_inputs,
]
test_pipeline = [
    dict(type='DecordInit'),
    dict(type='SampleFrames', num_clips=10, test_mode=True, **frames),
    dict(type='DecordDecode'),
    dict(type='Resize', scale=(-1, 256)),
    dict(type='ThreeCrop', crop_size=256),
    *format_inputs,
]

loader = dict(num_workers=8, persistent_workers=True)
validation = dict(type='VideoDataset', ann_file=val_list, data_prefix=dict(video=data_root_val))
train_dataloader = dict(
    batch_size=8,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='VideoDataset',
        ann_file=train_list,
        data_prefix=dict(video=data_root),
        pipeline=train_pipeline,
    ),
    **loader,
)
val_dataloader = dict(
    batch_size=8,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(pipeline=val_pipeline, test_mode=True, **validation),
    **loader,
)
test_dataloader = dict(
    batch_size=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(pipeline=test_pipeline, test_mode=True, **validation),
    **loader,
)
