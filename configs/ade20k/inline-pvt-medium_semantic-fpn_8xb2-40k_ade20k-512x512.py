_base_ = './inline-pvt-tiny_semantic-fpn_8xb2-40k_ade20k-512x512.py'
model = dict(
    backbone=dict(
        arch='medium',
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint='checkpoints/inline-pvt-medium.pth'),
    )
)
