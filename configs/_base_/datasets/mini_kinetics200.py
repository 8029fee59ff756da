# Lists from tools/data/build_mini_kinetics.py.
_base_ = 'kinetics400.py'
train = dict(ann_file='data/mini_kinetics200/train.txt', data_prefix=dict(video='data/kinetics400'))
validation = dict(
    ann_file='data/mini_kinetics200/val.txt', data_prefix=dict(video='data/kinetics400')
)
train_dataloader = dict(dataset=train)
val_dataloader = dict(dataset=validation)
test_dataloader = dict(dataset=validation)
