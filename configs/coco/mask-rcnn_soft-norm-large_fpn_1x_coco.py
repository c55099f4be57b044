_base_ = './mask-rcnn_soft-norm-tiny_fpn_1x_coco.py'
model = dict(
    backbone=dict(arch='large', init_cfg=dict(checkpoint='checkpoints/soft-norm-large.pth'))
)
