# The least UperNet, with its images in data/ade/ADEChallengeData2016.
_base_ = '../../../configs/ade20k/soft-norm-tiny_upernet_8xb2-160k_ade20k-512x512.py'
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
        init_cfg=None,
    ),
    data_preprocessor=dict(size=(64, 64)),
    decode_head=dict(in_channels=[8, 8, 8, 16], channels=8),
    auxiliary_head=dict(in_channels=8, channels=8),
)

train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = (256, 64)
train_pipeline[3].crop_size = (64, 64)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (256, 64)
in_this_process = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(in_this_process, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(in_this_process, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=1, val_interval=1)
