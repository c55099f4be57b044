_base_ = './mask-rcnn_inline-swin-tiny_fpn_1x_coco.py'
model = dict(
    backbone=dict(arch='small', init_cfg=dict(checkpoint='checkpoints/inline-swin-small.pth'))
)
