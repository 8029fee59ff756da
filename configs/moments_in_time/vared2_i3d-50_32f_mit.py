_base_ = 'vared2_i3d-50_8f_mit.py'
frames = dict(clip_len=32, frame_interval=2)
for pipeline in (_base_.train_pipeline, _base_.val_pipeline, _base_.test_pipeline):
    pipeline[1].update(frames)
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=_base_.val_pipeline))
test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
load_from = 'work_dirs/static_i3d-50_32f_mit/epoch_100.pth'
