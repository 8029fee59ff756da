_base_ = 'vared2_r2plus1d-18_8f_mk200.py'
frames = dict(clip_len=32, frame_interval=2)
for pipeline in (_base_.train_pipeline, _base_.val_pipeline, _base_.test_pipeline):
    pipeline[1].update(frames)
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=_base_.val_pipeline))
test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
load_from = 'work_dirs/static_r2plus1d-18_32f_mk200/epoch_100.pth'
