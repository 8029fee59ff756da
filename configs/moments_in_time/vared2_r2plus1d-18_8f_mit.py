_base_ = [
    '../_base_/models/vared2_r2plus1d.py',
    '../_base_/datasets/moments_in_time.py',
    '../_base_/schedules/vared2.py',
    'mmaction::_base_/default_runtime.py',
]
model = dict(cls_head=dict(num_classes=339))
load_from = 'work_dirs/static_r2plus1d-18_8f_mit/epoch_100.pth'
