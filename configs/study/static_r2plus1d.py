# The static network of the study: that of the demo with half its channels, so that few are to
# spare, on clips of four times as many frames, so that neighbours resemble each other as those of
# a real video do.
_base_ = '../demo/static_r2plus1d.py'

model = dict(
    backbone=dict(base_channels=8, conv1_kernel=(3, 3, 3)),
    cls_head=dict(in_channels=64),
)

frames = dict(type='SampleFrames', clip_len=32, frame_interval=1, num_clips=1)
small = dict(type='Resize', scale=(40, 40), keep_ratio=False)
format_inputs = [dict(type='FormatShape', input_format='NCTHW'), dict(type='PackActionInputs')]
decode = [dict(type='DecordInit', num_threads=1), frames, dict(type='DecordDecode'), small]
train_pipeline = [
    dict(type='DecodeOnce', transforms=decode),  # all frames of a video: nothing is random
    dict(type='RandomCrop', size=32),  # no Flip: left and right are classes
    *format_inputs,
]
test_pipeline = [
    dict(type='DecordInit', num_threads=1),
    dict(test_mode=True, **frames),
    dict(type='DecordDecode'),
    small,
    dict(type='CenterCrop', crop_size=32),
    *format_inputs,
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=64, dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(batch_size=64, dataset=dict(pipeline=test_pipeline))

max_epochs = 12
train_cfg = dict(max_epochs=max_epochs)
by_iteration = dict(by_epoch=True, convert_to_iter_based=True)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=1.5, **by_iteration),
    dict(type='CosineAnnealingLR', begin=1.5, end=max_epochs, eta_min=0, **by_iteration),
]
work_dir = 'work_dirs/study/static_r2plus1d'
