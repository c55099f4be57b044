_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_soft_300e.py',
    '../_base_/cls_runtime.py',
]
model = dict(
    backbone=dict(
        type='soft_mm.SOFT', arch='tiny', sym_norm=True, drop_path_rate=0.1, out_type='cls_token'
    )
)
