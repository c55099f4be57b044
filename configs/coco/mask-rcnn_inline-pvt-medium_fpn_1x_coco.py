_base_ = './mask-rcnn_inline-pvt-tiny_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        arch='medium',
        init_cfg=dict(checkpoint='checkpoints/inline-pvt-medium.pth'),
    )
)
