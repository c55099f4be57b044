_base_ = './mask-rcnn_inline-swin-tiny_fpn_3x_coco.py'
model = dict(
    backbone=dict(arch='small', init_cfg=dict(checkpoint='checkpoints/inline-swin-small.pth'))
)
