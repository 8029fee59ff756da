# I3D-ResNet-50, MMAction2's I3D; the paper's has an Inception backbone.
_base_ = 'mmaction::_base_/models/i3d_r50.py'
