_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_inline.py',
    '../_base_/schedules/imagenet_inline-pvt_300e.py',
    '../_base_/cls_runtime.py',
]
model = dict(
    backbone=dict(type='soft_mm.InLinePVT', arch='tiny', drop_path_rate=0.1, out_type='avg_featmap')
)
optim_wrapper = dict(clip_grad=None)
