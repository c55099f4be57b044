_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_inline.py',
    '../_base_/schedules/imagenet_inline_300e.py',
    '../_base_/cls_runtime.py',
]
model = dict(
    backbone=dict(type='soft_mm.InLineDeiT', arch='tiny', drop_path_rate=0.1, out_type='cls_token'),
    head=dict(in_channels=192),
)
train_dataloader = dict(batch_size=512)
optim_wrapper = dict(optimizer=dict(lr=4e-3))
auto_scale_lr = dict(base_batch_size=4096)
