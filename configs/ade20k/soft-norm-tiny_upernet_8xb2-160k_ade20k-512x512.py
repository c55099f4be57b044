_base_ = './soft-norm-small_upernet_8xb2-160k_ade20k-512x512.py'
model = dict(backbone=dict(arch='tiny', init_cfg=dict(checkpoint='checkpoints/soft-norm-tiny.pth')))
