_base_ = './inline-pvt-tiny_upernet_8xb2-160k_ade20k-512x512.py'
model = dict(
    backbone=dict(arch='small', init_cfg=dict(checkpoint='checkpoints/inline-pvt-small.pth'))
)
