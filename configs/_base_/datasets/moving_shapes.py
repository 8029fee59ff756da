# Generated videos of 32 frames, see tools/make_moving_shapes.py; a clip is all of a video.
data_root = 'data/moving_shapes'

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

dataset = dict(type='VideoDataset', data_prefix=dict(video=data_root))
testing = dict(pipeline=test_pipeline, test_mode=True, **dataset)
loader = dict(num_workers=2, persistent_workers=True)
in_order = dict(type='DefaultSampler', shuffle=False)
train_dataloader = dict(
    batch_size=16,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(ann_file=f'{data_root}/train.txt', pipeline=train_pipeline, **dataset),
    **loader,
)
val_dataloader = dict(
    batch_size=32,
    sampler=in_order,
    dataset=dict(ann_file=f'{data_root}/val.txt', **testing),
    **loader,
)
test_dataloader = dict(
    batch_size=32,
    sampler=in_order,
    dataset=dict(ann_file=f'{data_root}/test.txt', **testing),
    **loader,
)

val_evaluator = dict(type='AccMetric')
test_evaluator = val_evaluator
