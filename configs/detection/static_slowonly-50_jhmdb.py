# MMAction2's SlowOnly on J-HMDB-21, split 1, converted by tools/data/convert_jhmdb.py. Boxes are
# those of the annotation; proposals of a detector go into proposal_file.
_base_ = [
    'mmaction::detection/slowonly/slowonly_kinetics400-pretrained-r50_8xb16-4x16x1-20e_ava21-rgb.py',
    '../_base_/models/ava_backbones.py',
]
custom_imports = dict(imports=['vared2_mmaction'])  # mends the installed releases

model = dict(
    init_cfg=dict(checkpoint=_base_.slowonly_kinetics400),
    roi_head=dict(bbox_head=dict(num_classes=22, multilabel=False)),
)

root = 'data/jhmdb'
frames = dict(type='SampleAVAFrames', clip_len=8, frame_interval=4)
decode = [dict(type='DecordInit'), dict(type='DecordDecode')]
train_pipeline = [decode[0], frames, decode[1], *_base_.train_pipeline[2:]]
val_pipeline = [decode[0], dict(test_mode=True, **frames), decode[1], *_base_.val_pipeline[2:]]
dataset = dict(
    _delete_=True,
    type='AVADataset',
    label_file=f'{root}/annotations/actions.pbtxt',
    data_prefix=dict(img=f'{root}/ReCompress_Videos'),
    num_classes=22,
    use_frames=False,
    fps=1,  # timestamps are numbers of frames, from 1
    timestamp_start=1,
    start_index=0,
)
train = f'{root}/annotations/jhmdb_train_split1'
test = f'{root}/annotations/jhmdb_test_split1'
train_dataloader = dict(
    dataset=dict(
        ann_file=f'{train}.csv',
        exclude_file=f'{train}_excluded_timestamps.csv',
        proposal_file=f'{train}_ground_truth_boxes.pkl',
        pipeline=train_pipeline,
        **dataset,
    )
)
val_dataloader = dict(
    dataset=dict(
        ann_file=f'{test}.csv',
        exclude_file=f'{test}_excluded_timestamps.csv',
        proposal_file=f'{test}_ground_truth_boxes.pkl',
        pipeline=val_pipeline,
        test_mode=True,
        **dataset,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(
    ann_file=f'{test}.csv',
    label_file=dataset['label_file'],
    exclude_file=f'{test}_excluded_timestamps.csv',
    num_classes=22,
)
test_evaluator = val_evaluator
