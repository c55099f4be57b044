# Multi-scale training: the shorter side is drawn from 480 to 800 pixels, the longer one is at most 1333.
_base_ = './coco_instance.py'

train_pipeline = _base_.train_pipeline
train_pipeline[2] = dict(
    type='RandomChoiceResize',
    scales=[(1333, side) for side in range(480, 801, 32)],
    keep_ratio=True,
)

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
