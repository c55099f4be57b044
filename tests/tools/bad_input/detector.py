# The least Mask R-CNN, of two classes, with its images in data/coco.
_base_ = '../../../configs/coco/mask-rcnn_soft-norm-tiny_fpn_1x_coco.py'
width = 8
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
    neck=dict(in_channels=[8, 8, 8, 16], out_channels=width),
    rpn_head=dict(in_channels=width, feat_channels=width),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width),
        bbox_head=dict(in_channels=width, fc_out_channels=width, num_classes=2),
        mask_roi_extractor=dict(out_channels=width),
        mask_head=dict(in_channels=width, conv_out_channels=width, num_convs=1, num_classes=2),
    ),
)

train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = (64, 64)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (64, 64)
metainfo = dict(classes=('cat', 'dog'))
in_this_process = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(in_this_process, dataset=dict(metainfo=metainfo, pipeline=train_pipeline))
val_dataloader = dict(in_this_process, dataset=dict(metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1)
