# InLine's authors published no detection recipe. This is the one of their Agent-Swin (arXiv 2312.08874,
# github.com/LeapLabTHU/Agent-Attention), which is Swin's (arXiv 2103.14030): 16 images per step, AdamW,
# 12 epochs. As in all our recipes, biases have no weight decay.
_base_ = './coco_1x.py'

optim_wrapper = dict(
    optimizer=dict(betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=dict(relative_position_bias=dict(decay_mult=0.0))),
)
