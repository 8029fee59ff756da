# Generated videos of 24 frames in the format of AVA, see tools/make_moving_boxes.py; a clip's 8
# frames span the video. Left and right are classes: no Flip.
data_root = 'data/moving_boxes'
annotations = f'{data_root}/annotations'

frames = dict(type='SampleAVAFrames', clip_len=8, frame_interval=3)
format_inputs = [
    dict(type='FormatShape', input_format='NCTHW', collapse=True),
    dict(type='PackActionInputs'),
]
train_pipeline = [
    dict(type='DecordInit', num_threads=1),
    frames,
    dict(type='DecordDecode'),
    dict(type='RandomRescale', scale_range=(48, 56)),
    dict(type='RandomCrop', size=48),
    *format_inputs,
]
test_pipeline = [
    dict(type='DecordInit', num_threads=1),
    dict(test_mode=True, **frames),
    dict(type='DecordDecode'),
    dict(type='Resize', scale=(48, 48), keep_ratio=False),
    *format_inputs,
]


dataset = dict(
    type='AVADataset',
    label_file=f'{annotations}/actions.pbtxt',
    data_prefix=dict(img=data_root),
    num_classes=9,
    use_frames=False,
    fps=1,  # timestamps are numbers of frames, from 1
    timestamp_start=1,
    start_index=0,
)
train, val, test = (
    dict(
        ann_file=f'{annotations}/{split}.csv',
        exclude_file=f'{annotations}/{split}_excluded_timestamps.csv',
        proposal_file=f'{annotations}/{split}_proposals.pkl',
        pipeline=train_pipeline if split == 'train' else test_pipeline,
        test_mode=split != 'train',
    )
    for split in ('train', 'val', 'test')
)
loader = dict(num_workers=1, persistent_workers=True)
shuffled, in_order = (dict(type='DefaultSampler', shuffle=shuffle) for shuffle in (True, False))
train_dataloader = dict(batch_size=16, sampler=shuffled, dataset={**dataset, **train}, **loader)
val_dataloader = dict(batch_size=1, sampler=in_order, dataset={**dataset, **val}, **loader)
test_dataloader = dict(batch_size=1, sampler=in_order, dataset={**dataset, **test}, **loader)

metric = dict(type='AVAMetric', label_file=dataset['label_file'], num_classes=9)
val_evaluator = dict(ann_file=val['ann_file'], exclude_file=val['exclude_file'], **metric)
test_evaluator = dict(ann_file=test['ann_file'], exclude_file=test['exclude_file'], **metric)
