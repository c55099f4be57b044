_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_384px.py',
    '../_base_/schedules/imagenet_inline_384px.py',
    '../_base_/cls_runtime.py',
]
model = dict(
    backbone=dict(
        type='soft_mm.InLineSwin',
        arch='base',
        img_size=384,
        window_size=12,
        drop_path_rate=0.5,
        out_type='avg_featmap',
    ),
    head=dict(in_channels=1024),
)
load_from = 'checkpoints/inline-swin-base.pth'
train_dataloader = dict(batch_size=64)
