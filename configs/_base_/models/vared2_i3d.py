_base_ = 'static_i3d.py'
model = dict(
    backbone=dict(type='VARED2ResNet3d', pretrained=None, dynamic=dict()),
    neck=dict(type='SoftModulationGateNeck'),
    cls_head=dict(type='VARED2I3DHead', loss_budget=dict(budget=0.6)),
)
