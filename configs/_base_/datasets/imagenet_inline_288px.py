_base_ = './imagenet.py'

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 288
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = 329  # 256/224 of the size
test_pipeline[2].crop_size = 288

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
