_base_ = [
    '../_base_/models/static_i3d.py',
    '../_base_/datasets/mini_kinetics200.py',
    '../_base_/schedules/static.py',
    'mmaction::_base_/default_runtime.py',
]
model = dict(cls_head=dict(num_classes=200))
