_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_inline_288px.py',
    '../_base_/schedules/imagenet_inline_300e.py',
    '../_base_/cls_runtime.py',
]
model = dict(
    backbone=dict(
        type='soft_mm.InLineDeiT',
        arch='small',
        img_size=288,
        drop_path_rate=0.1,
        out_type='cls_token',
    ),
    head=dict(in_channels=320),
)
