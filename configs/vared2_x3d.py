# VA-RED2 of MMAction2's X3D-M on Kinetics-400, from its zoo checkpoint. MMAction2 tests X3D only;
# data, schedule and loops of training are those of the other Kinetics-400 recipes here.
_base_ = [
    'mmaction::_base_/models/x3d.py',
    '_base_/datasets/kinetics400.py',
    '_base_/schedules/vared2.py',
    'mmaction::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(type='VARED2X3D', dynamic=dict()),
    neck=dict(type='SoftModulationGateNeck'),
    cls_head=dict(type='VARED2X3DHead', loss_budget=dict(budget=0.6)),
)
load_from = (
    'https://download.openmmlab.com/mmaction/v1.0/recognition/'
    'x3d/facebook/x3d_m_16x5x1_facebook-kinetics400-rgb_20201027-3f42382a.pth'
)

for pipeline in (_base_.train_pipeline, _base_.val_pipeline, _base_.test_pipeline):
    pipeline[1].update(clip_len=16, frame_interval=5, target_fps=30)
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=_base_.val_pipeline))
test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
