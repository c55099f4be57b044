_base_ = './soft-norm-small_upernet_8xb2-160k_ade20k-512x512.py'
model = dict(
    backbone=dict(arch='large', init_cfg=dict(checkpoint='checkpoints/soft-norm-large.pth'))
)
