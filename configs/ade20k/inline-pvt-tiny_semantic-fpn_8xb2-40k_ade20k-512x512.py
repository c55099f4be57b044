_base_ = [
    '../_base_/models/semantic-fpn.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade20k_40k.py',
    '../_base_/seg_runtime.py',
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
