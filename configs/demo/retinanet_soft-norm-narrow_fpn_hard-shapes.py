# The study's detector, in which tools/analysis_tools/study.py replaces the backbone: half the channels
# of SOFT-Norm-Tiny, and smaller anchors for smaller shapes.
_base_ = './retinanet_soft-norm-tiny_fpn_shapes.py'
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            channels=(32, 64, 160, 256),
            num_heads=(1, 2, 5, 8),
            depths=(1, 2, 3, 2),
            kernel_sizes=(9, 5, 3),
        ),
        img_size=128,
    ),
    neck=dict(in_channels=[32, 64, 160, 256], out_channels=64),
    bbox_head=dict(
        num_classes=5,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        anchor_generator=dict(octave_base_scale=2),
    ),
    test_cfg=dict(score_thr=0.001),
)

data_root = 'data/hard-shapes/'
metainfo = dict(classes=('circle', 'square', 'triangle', 'star', 'twin'))
dataset = dict(data_root=data_root, metainfo=metainfo)
train_dataloader = dict(batch_size=8, dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = dict(dataset=dataset)
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json', classwise=True)
test_evaluator = val_evaluator

max_epochs = 8
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=max_epochs,
        eta_min_ratio=0.02,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
default_hooks = dict(checkpoint=dict(interval=max_epochs, save_best=None))
