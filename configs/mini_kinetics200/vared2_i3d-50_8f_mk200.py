_base_ = [
    '../_base_/models/vared2_i3d.py',
    '../_base_/datasets/mini_kinetics200.py',
    '../_base_/schedules/vared2.py',
    'mmaction::_base_/default_runtime.py',
]
model = dict(cls_head=dict(num_classes=200))
load_from = 'work_dirs/static_i3d-50_8f_mk200/epoch_100.pth'
