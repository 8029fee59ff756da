_base_ = 'static_r2plus1d.py'
model = dict(
    backbone=dict(type='VARED2ResNet2Plus1d', dynamic=dict(channel_multiple=16)),
    neck=dict(type='SoftModulationGateNeck'),
    cls_head=dict(type='VARED2I3DHead', loss_budget=dict(budget=0.6)),
)
