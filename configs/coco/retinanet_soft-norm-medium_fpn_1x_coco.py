_base_ = './retinanet_soft-norm-tiny_fpn_1x_coco.py'
model = dict(
    backbone=dict(arch='medium', init_cfg=dict(checkpoint='checkpoints/soft-norm-medium.pth')),
    neck=dict(in_channels=[64, 128, 288, 512]),
)
