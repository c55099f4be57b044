_base_ = [
    '../_base_/models/mask-rcnn_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_1x.py',
    '../_base_/det_runtime.py',
]
model = dict(
    backbone=dict(
        type='soft_mm.InLinePVT',
        arch='tiny',
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/inline-pvt-tiny.pth', prefix='backbone.'
        ),
    )
)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
