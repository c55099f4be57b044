_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_384px.py',
    '../_base_/schedules/imagenet_inline_384px.py',
    '../_base_/cls_runtime.py',
]
model = dict(
    backbone=dict(
        type='soft_mm.InLineCSwin',
        arch='base',
        img_size=384,
        stripe_size=12,
        drop_path_rate=0.7,
        out_type='avg_featmap',
    ),
    head=dict(in_channels=768),
)
load_from = 'checkpoints/inline-cswin-base.pth'
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=5e-6), clip_grad=None)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = 20
train_cfg = dict(max_epochs=20)
