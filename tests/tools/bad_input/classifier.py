# The least classifier of two classes, with its images in data/imagenet/{train,val}/{cat,dog}.
_base_ = '../../../configs/imagenet/soft-norm-tiny_8xb128-300e_in1k.py'
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            channels=(8, 8, 8, 16),
            num_heads=(1, 1, 1, 1),
            depths=(1, 1, 1, 1),
            kernel_sizes=(9, 5, 3),
        ),
        img_size=64,
    ),
    data_preprocessor=dict(num_classes=2),
    head=dict(num_classes=2, in_channels=16),
)

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 64
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = 64
test_pipeline[2].crop_size = 64
metainfo = dict(classes=('cat', 'dog'))
in_this_process = dict(batch_size=2, num_workers=0, persistent_workers=False, pin_memory=False)
train_dataloader = dict(in_this_process, dataset=dict(metainfo=metainfo, pipeline=train_pipeline))
val_dataloader = dict(in_this_process, dataset=dict(metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
