_base_ = 'vared2_r2plus1d-18_8f_mk200.py'
model = dict(backbone=dict(dynamic=dict(channel=1)))
