_base_ = './imagenet.py'

test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = 256  # crop ratio 224/256

val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
