_base_ = './imagenet.py'

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 384
test_pipeline = [  # the full image, without cropping
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(384, 384), backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
