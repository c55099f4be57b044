_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_inline.py',
    '../_base_/schedules/imagenet_inline-cswin_300e.py',
    '../_base_/cls_runtime.py',
]
model = dict(
    backbone=dict(
        type='soft_mm.InLineCSwin', arch='tiny', drop_path_rate=0.2, out_type='avg_featmap'
    )
)
