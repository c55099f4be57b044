_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_inline.py',
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

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 288
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = 329  # crop ratio 224/256
test_pipeline[2].crop_size = 288
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
