# A classifier of scikit-learn's handwritten digits, which are an ImageFolder of 8×8 scans.
_base_ = '../../configs/imagenet/soft-norm-tiny_8xb128-300e_in1k.py'
model = dict(
    backbone=dict(drop_path_rate=0.0, img_size=64),
    head=dict(num_classes=10, loss=dict(label_smooth_val=0.0), topk=(1,)),
    data_preprocessor=dict(num_classes=10),
    train_cfg=None,
)

data_root = 'data/digits'
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64)),
    dict(type='PackInputs'),
]
dataset = dict(
    _delete_=True, type='CustomDataset', data_root=data_root, with_label=True, pipeline=pipeline
)
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(dataset, data_prefix='train'),
)
val_dataloader = dict(
    batch_size=32, num_workers=0, persistent_workers=False, dataset=dict(dataset, data_prefix='val')
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

max_epochs = 10
optim_wrapper = dict(optimizer=dict(lr=3e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=40),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=max_epochs,
        eta_min=1e-6,
        convert_to_iter_based=True,
    ),
]
custom_hooks = []
train_cfg = dict(max_epochs=max_epochs)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(save_best=None))
randomness = dict(seed=0)
