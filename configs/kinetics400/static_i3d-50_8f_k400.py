_base_ = [
    '../_base_/models/static_i3d.py',
    '../_base_/datasets/kinetics400.py',
    '../_base_/schedules/static.py',
    'mmaction::_base_/default_runtime.py',
]
