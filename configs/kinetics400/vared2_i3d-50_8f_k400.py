_base_ = [
    '../_base_/models/vared2_i3d.py',
    '../_base_/datasets/kinetics400.py',
    '../_base_/schedules/vared2.py',
    'mmaction::_base_/default_runtime.py',
]
load_from = 'work_dirs/static_i3d-50_8f_k400/epoch_100.pth'
