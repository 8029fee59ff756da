# Backbones for AVA, as MMAction2 has them for Kinetics, but with a stride of 16 pixels in all,
# which is what the RoI extractor of its detection recipes expects.
zoo = 'https://download.openmmlab.com/mmaction/v1.0/recognition/'
slowonly = dict(
    type='mmaction.ResNet3dSlowOnly',
    depth=50,
    pretrained=None,
    pretrained2d=False,
    lateral=False,
    num_stages=4,
    conv1_kernel=(1, 7, 7),
    conv1_stride_t=1,
    pool1_stride_t=1,
    spatial_strides=(1, 2, 2, 1),
)
slowonly_kinetics400 = (
    f'{zoo}slowonly/slowonly_imagenet-pretrained-r50_8xb16-8x8x1-steplr-150e_kinetics400-rgb/'
    'slowonly_imagenet-pretrained-r50_8xb16-8x8x1-steplr-150e_kinetics400-rgb_20220901-df42dc84.pth'
)
i3d = dict(
    type='mmaction.ResNet3d',
    depth=50,
    pretrained=None,
    pretrained2d=False,
    conv_cfg=dict(type='Conv3d'),
    conv1_kernel=(5, 7, 7),
    conv1_stride_t=2,
    pool1_stride_t=2,
    inflate=((1, 1, 1), (1, 0, 1, 0), (1, 0, 1, 0, 1, 0), (0, 1, 0)),
    norm_eval=False,
    zero_init_residual=False,
    spatial_strides=(1, 2, 2, 1),
)
i3d_kinetics400 = (
    f'{zoo}i3d/i3d_imagenet-pretrained-r50_8xb8-32x2x1-100e_kinetics400-rgb/'
    'i3d_imagenet-pretrained-r50_8xb8-32x2x1-100e_kinetics400-rgb_20220812-e213c223.pth'
)
r2plus1d = dict(
    type='mmaction.ResNet2Plus1d',
    depth=34,
    pretrained=None,
    pretrained2d=False,
    norm_eval=False,
    conv_cfg=dict(type='Conv2plus1d'),
    norm_cfg=dict(type='SyncBN', requires_grad=True, eps=1e-3),
    conv1_kernel=(3, 7, 7),
    conv1_stride_t=1,
    pool1_stride_t=1,
    spatial_strides=(1, 2, 2, 1),
    temporal_strides=(1, 2, 2, 2),
    zero_init_residual=False,
)
r2plus1d_kinetics400 = (
    f'{zoo}r2plus1d/r2plus1d_r34_8xb8-8x8x1-180e_kinetics400-rgb/'
    'r2plus1d_r34_8xb8-8x8x1-180e_kinetics400-rgb_20220812-47cfe041.pth'
)
