# Lists from MMAction2's own tools for Moments in Time.
_base_ = 'kinetics400.py'
train = dict(
    ann_file='data/mit/mit_train_list_videos.txt',
    data_prefix=dict(video='data/mit/videos/training'),
)
validation = dict(
    ann_file='data/mit/mit_val_list_videos.txt',
    data_prefix=dict(video='data/mit/videos/validation'),
)
train_dataloader = dict(dataset=train)
val_dataloader = dict(dataset=validation)
test_dataloader = dict(dataset=validation)
