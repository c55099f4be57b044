_base_ = [
    '../_base_/models/mask-rcnn_fpn.py',
    '../_base_/datasets/coco_instance_ms-crop.py',
    '../_base_/schedules/coco_1x_swin.py',
    '../_base_/det_runtime.py',
]
model = dict(
    backbone=dict(
        type='soft_mm.InLineSwin',
        arch='tiny',
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/inline-swin-tiny.pth', prefix='backbone.'
        ),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
