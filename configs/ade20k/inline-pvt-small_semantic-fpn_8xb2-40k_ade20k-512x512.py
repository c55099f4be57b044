_base_ = './inline-pvt-tiny_semantic-fpn_8xb2-40k_ade20k-512x512.py'
model = dict(
    backbone=dict(arch='small', init_cfg=dict(checkpoint='checkpoints/inline-pvt-small.pth'))
)
