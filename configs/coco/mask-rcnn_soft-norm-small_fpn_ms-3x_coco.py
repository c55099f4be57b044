_base_ = './mask-rcnn_soft-norm-tiny_fpn_ms-3x_coco.py'
model = dict(
    backbone=dict(arch='small', init_cfg=dict(checkpoint='checkpoints/soft-norm-small.pth'))
)
