_base_ = 'vared2_i3d-50_8f_mk200.py'
model = dict(backbone=dict(dynamic=dict(channel=1)))
