_base_ = [
    '../_base_/models/vared2_r2plus1d.py',
    '../_base_/datasets/kinetics400.py',
    '../_base_/schedules/vared2.py',
    'mmaction::_base_/default_runtime.py',
]
load_from = 'work_dirs/static_r2plus1d-18_8f_k400/epoch_100.pth'
