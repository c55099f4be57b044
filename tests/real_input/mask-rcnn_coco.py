# Mask R-CNN overfits two images of COCO val2017, from scratch.
_base_ = [
    '../../configs/coco/mask-rcnn_soft-norm-tiny_fpn_1x_coco.py',
]
