# R(2+1)D-18, the network of the paper.
_base_ = 'mmaction::_base_/models/r2plus1d_r34.py'
model = dict(backbone=dict(depth=18))
