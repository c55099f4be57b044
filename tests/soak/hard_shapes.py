# The study's detector on images of random sizes, by iterations, with every kind of state that a resumed
# run has to restore.
_base_ = '../../configs/demo/retinanet_soft-norm-narrow_fpn_hard-shapes.py'
train_pipeline = _base_.train_pipeline
train_pipeline[2] = dict(
    type='RandomChoiceResize',
    scales=[(64, 96), (96, 64), (128, 128), (160, 96), (96, 160), (192, 128), (192, 192)],
    keep_ratio=False,
)
test_pipeline = _base_.test_pipeline
test_pipeline[1] = dict(type='Resize', scale_factor=1.0, keep_ratio=True)  # images as they are
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler'),
    batch_sampler=None,
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='ExponentialLR', gamma=0.9998, by_epoch=False, begin=50),
]
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=24000, val_interval=90)
custom_hooks = [
    dict(type='EMAHook', momentum=0.01, update_buffers=True, priority='ABOVE_NORMAL'),
]
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=15, max_keep_ckpts=2),
    logger=dict(log_metric_by_epoch=False),
)
log_processor = dict(by_epoch=False)
