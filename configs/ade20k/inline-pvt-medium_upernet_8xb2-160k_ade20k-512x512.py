_base_ = './inline-pvt-tiny_upernet_8xb2-160k_ade20k-512x512.py'
model = dict(
    backbone=dict(
        arch='medium',
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint='checkpoints/inline-pvt-medium.pth'),
    )
)
