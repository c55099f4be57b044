_base_ = './retinanet_inline-pvt-tiny_fpn_1x_coco.py'
model = dict(
    backbone=dict(arch='small', init_cfg=dict(checkpoint='checkpoints/inline-pvt-small.pth'))
)
