_base_ = [
    '../_base_/models/mask-rcnn_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_1x.py',
    '../_base_/det_runtime.py',
]
model = dict(
    backbone=dict(
        type='soft_mm.SOFT',
        arch='tiny',
        sym_norm=True,
        drop_path_rate=0.1,
        norm_eval=True,  # two images per GPU are too few for batch statistics
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/soft-norm-tiny.pth', prefix='backbone.'
        ),
    )
)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
