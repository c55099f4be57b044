# The smallest classifier with every kind of state that a resumed run has to restore: random
# augmentation of images and batches, stochastic depth, averaged weights and running statistics.
_base_ = './digits.py'
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            channels=(16, 16, 16, 32),
            num_heads=(1, 1, 1, 2),
            depths=(1, 1, 1, 1),
            kernel_sizes=(9, 5, 3),
        ),
        img_size=32,
        drop_path_rate=0.2,
    ),
    head=dict(in_channels=32),
    train_cfg=dict(_delete_=True, augments=[dict(type='Mixup', alpha=0.8)]),
)

train_dataloader = dict(
    batch_size=8,
    drop_last=False,
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(32, 32)),
            dict(type='RandomFlip', prob=0.5),
            dict(type='RandomErasing', mode='rand'),
            dict(type='PackInputs'),
        ]
    ),
)
custom_hooks = [
    dict(type='EMAHook', momentum=0.1, update_buffers=True, priority='ABOVE_NORMAL'),
]
max_epochs = 4
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=7),
    dict(
        type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, convert_to_iter_based=True
    ),
]
train_cfg = dict(max_epochs=max_epochs)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2, save_best='accuracy/top1'))
