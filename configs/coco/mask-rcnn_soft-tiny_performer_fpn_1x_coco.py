_base_ = './mask-rcnn_soft-norm-tiny_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        attention='performer',
        sym_norm=False,
        init_cfg=dict(checkpoint='checkpoints/soft-tiny_performer.pth'),
    )
)
