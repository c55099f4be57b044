_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_inline_224px.py',
    '../_base_/schedules/imagenet_inline_300e.py',
    '../_base_/cls_runtime.py',
]
model = dict(
    backbone=dict(
        type='soft_mm.InLineSwin', arch='base', drop_path_rate=0.5, out_type='avg_featmap'),
    head=dict(in_channels=1024))
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
auto_scale_lr = dict(base_batch_size=512)
