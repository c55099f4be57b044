# The authors published no segmentation recipe. This is Swin's (arXiv 2103.14030, §A2.3) as in mmseg, which
# InLine's authors use for Agent-Swin (arXiv 2312.08874, github.com/LeapLabTHU/Agent-Attention): 16 images
# per step, AdamW, 160k iterations. As in all our recipes, biases have no weight decay.
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=6e-5, weight_decay=0.01),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys=dict(
            pos_embed=dict(decay_mult=0.0),
            cls_token=dict(decay_mult=0.0),
            relative_position_bias=dict(decay_mult=0.0),
        ),
    ),
)

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=160000),
]

train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=16)
# Two images per GPU are too few for batch statistics: synchronise them across GPUs.
sync_bn = 'torch'
