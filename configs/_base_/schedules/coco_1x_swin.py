# The authors published no detection recipe. This is Swin's (arXiv 2103.14030) as in mmdet: 16 images
# per step, AdamW, 12 epochs. As in all our recipes, biases have no weight decay.
_base_ = './coco_1x.py'

optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=dict(relative_position_bias=dict(decay_mult=0.0))),
)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 1000
