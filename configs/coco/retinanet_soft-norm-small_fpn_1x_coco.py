_base_ = './retinanet_soft-norm-tiny_fpn_1x_coco.py'
model = dict(
    backbone=dict(arch='small', init_cfg=dict(checkpoint='checkpoints/soft-norm-small.pth'))
)
