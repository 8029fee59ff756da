_base_ = [
    '../_base_/models/static_r2plus1d.py',
    '../_base_/datasets/kinetics400.py',
    '../_base_/schedules/static.py',
    'mmaction::_base_/default_runtime.py',
]
